"""Profiles hold every picture up to the largest, every row and every width of the mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.contract import GraphSpec, TensorSpec, decoder_graph, square_vision_graph
from safecode_trt.engine_entry import AxisRange, EngineProfile
from safecode_trt.errors import BundleError, PictureError
from safecode_trt.export.engine_config import EngineConfig
from safecode_trt.export.engine_profiles import decoder_profiles, shapes, vision_profiles
from safecode_trt.models import load_spec
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import DEMO

pytest.importorskip("transformers")

RTX = EngineConfig(flavour="tensorrt-rtx", max_picture=(160, 120))
every_family = pytest.mark.parametrize("case", cases(), ids=lambda case: case.model_type)


def fits(tensor: TensorSpec, shape: tuple[int, ...], profile: EngineProfile) -> bool:
    (least, _, most) = shapes(GraphSpec(inputs=(tensor,), outputs=()), profile)[tensor.name]
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


@every_family
def test_pictures_up_to_the_largest_fit(case: FamilyCase, made: FamilyCheckpoints) -> None:
    spec = load_spec(made.checkpoint(case))
    graph = spec.vision_graph("float16")
    (profile,) = vision_profiles(spec, graph, RTX)
    words = np.zeros(9, np.int64) if spec.words_tokenizer else None
    largest = 0
    for width, height in (
        (160, 120),
        (120, 160),
        (139, 138),
        (320, 60),
        (80, 200),
        (40, 40),
        (64, 30),
        (160, 20),
    ):
        try:
            layout = spec.layout(width, height)
        except PictureError:
            continue
        views = [np.zeros((3, view.size[1], view.size[0]), np.float32) for view in layout.views]
        found = spec.vision_inputs(views, layout, words)
        for tensor in graph.inputs:
            x = found[tensor.name]
            assert fits(tensor, x.shape, profile), (width, height, tensor)
            assert fits(tensor, (2 * len(x), *x.shape[1:]), profile), "and with itself under noise"
            largest = max(largest, len(x))
    assert profile.axes["P"].max >= 2 * largest
    assert set(profile.axes) == {axis for t in graph.inputs for axis in t.shape if isinstance(axis, str)}


def test_tiles_are_counted(tmp_path: Path) -> None:
    spec = load_spec(DEMO)
    (whole,) = vision_profiles(spec, spec.vision_graph("float16"), RTX)
    assert whole.axes == {"P": AxisRange(min=1, opt=1, max=2)}


def test_decoder_profiles_are_prefill_and_decode() -> None:
    spec = load_spec(DEMO)
    config = EngineConfig(flavour="tensorrt", max_rows=5, max_prefill=200)
    graph = _demo_decoder()
    prefill, decode = decoder_profiles(spec, (spec.vision_graph("float16"), graph), 512, config)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.axes["T"] == AxisRange(min=1, opt=100, max=200)
    assert decode.axes["T"] == AxisRange(min=1, opt=1, max=8)
    for profile in (prefill, decode):
        assert profile.axes["C"] == AxisRange(min=1, opt=1, max=5)
        assert profile.axes["K"] == AxisRange(min=1, opt=256, max=512)


def test_a_prefill_is_no_longer_than_the_cache() -> None:
    spec = load_spec(DEMO)
    graphs = (spec.vision_graph("float16"), _demo_decoder())
    prefill, decode = decoder_profiles(spec, graphs, 6, EngineConfig(flavour="tensorrt"))
    assert (prefill.axes["T"].max, decode.axes["T"].max, prefill.axes["K"].max) == (6, 6, 6)


def test_axes_that_only_a_family_has_are_measured_on_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that looks at the pictures itself: S positions, 1 without a picture."""
    spec = load_spec(DEMO)
    graph = _demo_decoder(TensorSpec(name="seen", dtype="float16", shape=("C", "S", 128)))

    def row_inputs(self: Any, features: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"seen": features.get("image_features", np.zeros((1, 128), np.float32))}

    monkeypatch.setattr(type(spec), "row_inputs", row_inputs)
    profiles = decoder_profiles(spec, (spec.vision_graph("float16"), graph), 512, RTX)
    assert [profile.axes["S"] for profile in profiles] == [AxisRange(min=1, opt=16, max=64)] * 2


def test_shapes_are_in_tensorrts_order() -> None:
    graph = square_vision_graph(32, 4, 64, "float16")
    profile = EngineProfile(name="pictures", axes={"P": AxisRange(min=1, opt=2, max=6)})
    assert shapes(graph, profile) == {"pixel_values": ((1, 3, 32, 32), (2, 3, 32, 32), (6, 3, 32, 32))}


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_range_has_an_order(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(BundleError, match="min <= opt <= max"):
        AxisRange(min=sizes[0], opt=sizes[1], max=sizes[2])


def _demo_decoder(*own: TensorSpec) -> GraphSpec:
    from safecode_trt.export.export_config import ExportConfig
    from safecode_trt.export.package import geometry

    return decoder_graph(geometry(load_spec(DEMO), ExportConfig(context_length=512)), "fp16", own)
