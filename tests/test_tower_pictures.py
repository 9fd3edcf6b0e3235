"""Pictures of LLaVA, LLaVA-NeXT and InternVL: other processors, any size, the real tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from make_random_checkpoint import make_config
from random_families import family as random_family
from safecode_trt.errors import PictureError
from safecode_trt.models import load_spec
from safecode_trt.models.internvl import InternvlSpec
from safecode_trt.models.llava_next import LlavaNextSpec, best_resolution
from safecode_trt.runtime.image import normalise, picture_views
from tests.test_family_preprocessing import drawn

transformers = pytest.importorskip("transformers")

PROCESSORS: dict[str, dict[str, Any]] = {
    "padded": {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
    "larger than the crop": {"size": {"shortest_edge": 45}},
    "smaller than the crop": {"size": {"shortest_edge": 21}},
    "whole": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "stretched": {"size": {"height": 40, "width": 33}, "crop_size": 32},
    "other filter": {"resample": 2},
}
SIGLIP = {"vision_config.model_type": "siglip_vision_model", "vision_feature_select_strategy": "full"}
edges = st.integers(1, 3000)


def settings_only(
    folder: Path,
    family: str,
    size: str = "tiny",
    preprocessor: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """The spec of a checkpoint whose weights are not made."""
    config = make_config(family, size, changes)
    config.save_pretrained(folder)
    written = preprocessor if preprocessor is not None else random_family(family).preprocessor(config)
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return load_spec(folder)


def views_of(spec: Any, width: int, height: int) -> np.ndarray:
    layout = spec.layout(width, height)
    return np.stack(normalise(picture_views(drawn(width, height), layout, spec.resample), spec))


@pytest.mark.parametrize("name", PROCESSORS)
def test_llava_pictures_of_every_processor(tmp_path: Path, name: str) -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    written = random_family("llava").preprocessor(make_config("llava", "tiny")) | PROCESSORS[name]
    spec, processor = (
        settings_only(tmp_path, "llava", preprocessor=written),
        LlavaImageProcessorPil(**written),
    )
    for width, height in ((41, 63), (64, 31), (32, 32), (7, 90)):
        expected = processor(images=[drawn(width, height)], return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(views_of(spec, width, height), expected, atol=1e-5)


def test_siglip_pictures(tmp_path: Path) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = {"height": 32, "width": 32}
    written = {"image_processor_type": "SiglipImageProcessor", "size": size}
    spec = settings_only(tmp_path, "llava", preprocessor=written, changes=SIGLIP)
    expected = SiglipImageProcessorPil(size=size)(images=[drawn(41, 63)], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(views_of(spec, 41, 63), expected, atol=1e-5)
    assert spec.layout(41, 63).tokens == 16


def test_a_thread_of_a_picture_is_refused(tmp_path: Path) -> None:
    spec = settings_only(tmp_path, "llava")
    with pytest.raises(PictureError, match="at most 100000000 pixels"):
        spec.layout(2, 300_000)


@pytest.fixture(scope="module")
def next_7b(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlavaNextSpec, Any]:
    """The spec of the real size, and its processor, which only counts here."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    class Counting(transformers.LlavaNextProcessor):  # type: ignore[misc, name-defined]
        def __init__(self, image_processor: Any, **counts: Any) -> None:
            self.image_processor = image_processor
            self.__dict__ |= counts

    spec = settings_only(tmp_path_factory.mktemp("next"), "llava_next", "7b")
    written = random_family("llava_next").preprocessor(make_config("llava_next", "7b"))
    counts = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return spec, Counting(LlavaNextImageProcessorPil(**written), **counts)


@settings(max_examples=200)
@given(width=edges, height=edges)
def test_llava_next_counts_as_its_processor(
    width: int, height: int, next_7b: tuple[LlavaNextSpec, Any]
) -> None:
    spec, processor = next_7b
    layout = spec.layout(width, height)
    expected = processor._get_number_of_features(height, width, 336, 336) - 1
    assert layout.tokens == expected
    assert {view.size for view in layout.views} == {(336, 336)}
    assert len(layout.views) == 1 + layout.rows * layout.columns


@settings(max_examples=200)
@given(width=edges, height=edges)
def test_the_best_resolution_is_transformers(width: int, height: int) -> None:
    from transformers.image_processing_utils import select_best_resolution

    points = [(a * 336, b * 336) for a in range(1, 7) for b in range(1, 7) if a * b < 10]
    expected = select_best_resolution((height, width), [(high, wide) for wide, high in points])
    assert best_resolution(width, height, points) == expected[::-1]


def test_the_reference_of_llava_next_fits_any_layout(next_7b: tuple[LlavaNextSpec, Any]) -> None:
    spec, _ = next_7b
    known, newline = spec.reference_layout, np.full(4, -1, np.float32)
    views = np.random.default_rng(0).random((len(known.views), 576, 4), dtype=np.float32)
    outputs = {"image_features": views, "image_newline": np.tile(newline, (len(known.views), 1))}
    features = spec.features(outputs, known)
    same = spec.reference_features(features, known)["image_features"]
    assert np.array_equal(same, features["image_features"])
    for size in ((100, 700), (1000, 300), (500, 500)):
        layout = spec.layout(*size)
        found = spec.reference_features(features, layout)["image_features"]
        assert found.shape == (layout.tokens, 4) and np.array_equal(found[:576], views[0])
        # A newline ends each row of the grid, and is nowhere else.
        ends = np.flatnonzero((found == newline).all(-1)) - 576
        assert len(set(np.diff(ends))) == 1 and ends[0] + 1 == ends[1] - ends[0]


@pytest.mark.parametrize("most", [2, 3, 4])
def test_llava_next_with_fewer_tiles(next_7b: tuple[LlavaNextSpec, Any], most: int) -> None:
    spec, _ = next_7b
    allowed = tuple(point for point in spec.pinpoints if point[0] * point[1] <= most * 336**2)
    for size in ((800, 800), (336, 336), (100, 700), (1000, 300)):
        found = spec.with_max_tiles(most).layout(*size)
        assert found == replace(spec, pinpoints=allowed).layout(*size) and len(found.views) <= most + 1
        assert spec.with_max_tiles(4).layout(*size) == spec.layout(*size)


def test_llava_next_without_tiles(next_7b: tuple[LlavaNextSpec, Any]) -> None:
    """As transformers packs the features of a single view."""
    torch = pytest.importorskip("torch")
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    spec, _ = next_7b
    draw = np.random.default_rng(0)
    view, newline = draw.random((1, 576, 4), dtype=np.float32), draw.random(4, dtype=np.float32)
    layout = spec.with_max_tiles(1).layout(640, 480)
    found = spec.features({"image_features": view, "image_newline": newline[None]}, layout)["image_features"]
    (expected,), _ = LlavaNextModel.pack_image_features(
        None, [torch.from_numpy(view)], [(480, 640)], "default", torch.from_numpy(newline)
    )
    assert np.array_equal(found, expected.numpy()) and len(found) == layout.tokens
    known = draw.random((spec.reference_layout.tokens, 4), dtype=np.float32)
    stand_in = spec.reference_features({"image_features": known}, layout)["image_features"]
    assert np.array_equal(stand_in, np.concatenate([known[:576], known[-1:]]))


@pytest.fixture(scope="module")
def internvl_1b(tmp_path_factory: pytest.TempPathFactory) -> InternvlSpec:
    return cast(InternvlSpec, settings_only(tmp_path_factory.mktemp("internvl"), "internvl", "1b"))


@settings(max_examples=200)
@given(width=edges, height=edges, least=st.integers(1, 4), most=st.integers(1, 12))
def test_internvl_cuts_as_its_processor(
    width: int, height: int, least: int, most: int, internvl_1b: InternvlSpec
) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, min_patches=least, max_patches=most, crop_to_patches=True
    )
    layout = replace(internvl_1b, min_patches=least, max_patches=most).layout(width, height)
    assert len(layout.views) == processor.get_number_of_image_patches(height, width)
    assert layout.tokens == 256 * len(layout.views)


@pytest.mark.parametrize("most", [0, 1, 2, 5, 12, 40])
def test_internvl_with_fewer_tiles(internvl_1b: InternvlSpec, most: int) -> None:
    fewer = replace(internvl_1b, max_patches=min(most, 12))
    for size in ((800, 600), (448, 448), (100, 700), (3000, 300)):
        found = internvl_1b.with_max_tiles(most).layout(*size)
        assert found == fewer.layout(*size)
        assert len(found.views) == 1 or len(found.views) - 1 <= most
