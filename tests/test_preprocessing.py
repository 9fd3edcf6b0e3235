"""Our numpy preprocessing against transformers' PIL image processor, with and without image splitting."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safecode_trt.errors import CheckpointError
from safecode_trt.models import load_spec
from safecode_trt.models.idefics3 import Idefics3Spec
from safecode_trt.runtime.image import normalise, open_picture, picture_views
from tests.null_bundle import DEMO

transformers = pytest.importorskip("transformers")

SIZES = [
    (96, 96),
    (100, 40),
    (40, 100),
    (8, 8),
    (1, 1),
    (333, 97),
    (640, 480),
    (480, 641),
    (1000, 50),
    (3000, 2000),
]


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = [np.sin(x * 2 + y), np.cos(y * 3 - x), np.sin(x * y / 3)]
    return Image.fromarray((np.stack(waves, -1) * 127 + 128).astype(np.uint8)).convert(mode)


def specs(splitting: bool, longest_edge: int) -> tuple[Idefics3Spec, object]:
    """Our spec and transformers' processor with the same settings."""
    spec = load_spec(DEMO)
    assert isinstance(spec, Idefics3Spec)
    ours = replace(spec, do_image_splitting=splitting, longest_edge=longest_edge)
    theirs = transformers.AutoImageProcessor.from_pretrained(
        DEMO, do_image_splitting=splitting, size={"longest_edge": longest_edge}
    )
    return ours, theirs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("splitting", "edge"), [(False, 96), (False, 200), (True, 96), (True, 250), (True, 384)]
)
def test_pixels_and_tiles(size: tuple[int, int], splitting: bool, edge: int) -> None:
    ours, theirs = specs(splitting, edge)
    image = drawn(*size)
    expected = theirs(images=[image], return_row_col_info=True, return_tensors="np")  # type: ignore[operator]
    layout = ours.layout(*size)
    assert [[layout.rows]] == expected["rows"] and [[layout.columns]] == expected["cols"]
    pixels = np.stack(normalise(picture_views(image, layout, ours.resample), ours))
    assert pixels.shape == expected["pixel_values"][0].shape
    np.testing.assert_allclose(pixels, expected["pixel_values"][0], atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA"])
def test_modes(mode: str) -> None:
    ours, theirs = specs(False, 96)
    image = drawn(120, 80, mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = theirs(images=[image], return_tensors="np")["pixel_values"][0]  # type: ignore[operator]
    picture = open_picture(image)
    pixels = picture_views(picture, ours.layout(*picture.size), ours.resample)
    np.testing.assert_allclose(normalise(pixels, ours), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (640, 480), (300, 900)])
def test_image_text(size: tuple[int, int]) -> None:
    ours, _ = specs(True, 384)
    processor = transformers.AutoProcessor.from_pretrained(DEMO)
    layout = ours.layout(*size)
    inputs = {"rows": [[layout.rows]], "cols": [[layout.columns]]}
    assert ours.image_text(layout) == processor.replace_image_token(inputs, image_idx=0)


def test_silent_files_mean_what_the_classes_assume(tmp_path: Path) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    config, theirs = transformers.Idefics3Config(), Idefics3ImageProcessorPil()
    vision = {"image_size": theirs.max_image_size["longest_edge"], "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics3", "vision_config": vision}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    spec = load_spec(tmp_path)
    assert isinstance(spec, Idefics3Spec)
    assert spec.image_token_id == config.image_token_id
    assert spec.image_seq_len == (364 // 14 // config.scale_factor) ** 2
    assert spec.text.rms_norm_eps == config.text_config.rms_norm_eps
    assert (spec.image_mean, spec.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert (spec.resample, spec.rescale_factor) == (theirs.resample, theirs.rescale_factor)
    assert (spec.longest_edge, spec.do_image_splitting) == (theirs.size["longest_edge"], True)


@pytest.mark.parametrize(
    ("name", "value"), [("size", {"shortest_edge": 96}), ("max_image_size", 96), ("max_image_size", {})]
)
def test_sizes_need_a_longest_edge(tmp_path: Path, name: str, value: object) -> None:
    shutil.copy(DEMO / "config.json", tmp_path)
    settings = json.loads((DEMO / "preprocessor_config.json").read_text()) | {name: value}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"{name} must have a longest_edge"):
        load_spec(tmp_path)
