"""The sizes that engines are built for. numpy only; what a family's axes may be is found by asking its spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec
from safecode_trt.engine_entry import AxisRange, EngineProfile
from safecode_trt.errors import PictureError
from safecode_trt.export.engine_config import DECODE_TOKENS, EngineConfig
from safecode_trt.models import Features, Layout, ModelSpec

__all__ = ["decoder_profiles", "shapes", "vision_profiles"]

Axes = Mapping[str, int]
CONTRACT_AXES = {"C", "T", "CAP", "Q"}
MOST_POSITIONS = 16  # of a row whose logits are wanted: drafts and openings that are checked at once
SMALLEST_PICTURE = (32, 32)
# Width by height of pictures that tiled families cut differently; all have the area of the largest.
PROPORTIONS = (1 / 4, 1 / 3, 1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0, 3.0, 4.0)
MOST_PICTURES = 4  # in one prompt, where the decoder itself looks at them
USUAL_WORDS = 16


def shapes(graph: GraphSpec, profile: EngineProfile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The least, usual and largest shape of every input of a graph."""

    def sizes(axis: int | str) -> tuple[int, int, int]:
        if isinstance(axis, int):
            return axis, axis, axis
        found = profile.axes[axis]
        return found.min, found.opt, found.max

    return {t.name: tuple(zip(*map(sizes, t.shape), strict=True)) for t in graph.inputs}


def decoder_profiles(
    spec: ModelSpec, graphs: tuple[GraphSpec | None, GraphSpec], capacity: int, config: EngineConfig
) -> tuple[EngineProfile, ...]:
    """Prefill, with as many tokens at once as `config` says, and decode.

    `graphs` are the vision encoder, None in a text-only bundle, and the decoder.
    """
    vision, decoder = graphs
    most = min(config.max_prefill, capacity)
    common = {
        "C": AxisRange(min=1, opt=1, max=config.max_rows),
        "Q": AxisRange(min=1, opt=1, max=MOST_POSITIONS),
        "K": AxisRange(min=1, opt=max(capacity // 2, 1), max=capacity),
        **_own_axes(spec, vision, decoder, config),
    }
    prefill = AxisRange(min=1, opt=max(most // 2, 1), max=most)
    decode = AxisRange(min=1, opt=1, max=min(DECODE_TOKENS, capacity))
    return (
        EngineProfile(name="prefill", axes={**common, "T": prefill}),
        EngineProfile(name="decode", axes={**common, "T": decode}),
    )


def vision_profiles(spec: ModelSpec, graph: GraphSpec, config: EngineConfig) -> tuple[EngineProfile, ...]:
    """Pictures up to the largest, two at a time: the one that was given, and itself under noise."""
    width, height = config.max_picture
    area = width * height
    sizes = [
        (max(round(math.sqrt(area * ratio)), 1), max(round(math.sqrt(area / ratio)), 1))
        for ratio in PROPORTIONS
    ]
    usual = _vision_axes(spec, graph, spec.layout(width, height), USUAL_WORDS)
    found = [usual, _vision_axes(spec, graph, spec.reference_layout, 1)]
    found += [
        _vision_axes(spec, graph, layout, spec.max_words or USUAL_WORDS)
        for layout in _layouts(spec, [SMALLEST_PICTURE, *sizes])
    ]
    axes = _ranges(found, usual)
    views = axes["P"]
    return (
        EngineProfile(
            name="pictures", axes={**axes, "P": AxisRange(min=1, opt=views.opt, max=2 * views.max)}
        ),
    )


def _layouts(spec: ModelSpec, sizes: Iterable[tuple[int, int]]) -> list[Layout]:
    """The layouts of pictures of these sizes, without those that the family refuses."""
    layouts = []
    for size in sizes:
        try:
            layouts.append(spec.layout(*size))
        except PictureError:
            continue
    return layouts


def _vision_axes(spec: ModelSpec, graph: GraphSpec, layout: Layout, words: int) -> Axes:
    """The free axes of the vision encoder's inputs for one picture."""
    views = [np.zeros((3, view.size[1], view.size[0]), np.float32) for view in layout.views]
    read = np.zeros(min(words, spec.max_words or words), np.int64) if spec.words_tokenizer else None
    return _measured(graph, spec.vision_inputs(views, layout, read))


def _own_axes(
    spec: ModelSpec, vision: GraphSpec | None, decoder: GraphSpec, config: EngineConfig
) -> dict[str, AxisRange]:
    """The ranges of axes that only this family's decoder has, from no picture to several."""
    axes = {axis for tensor in decoder.inputs for axis in tensor.shape if isinstance(axis, str)}
    own = axes - CONTRACT_AXES
    if vision is None or not own:
        return {}
    layout = spec.layout(*config.max_picture)
    sizes = _vision_axes(spec, vision, layout, USUAL_WORDS)
    outputs = {
        tensor.name: np.zeros(
            [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape], np.float32
        )
        for tensor in vision.outputs
    }
    picture = spec.features(outputs, layout)
    counts = (0, 1, spec.max_pictures or MOST_PICTURES)
    none, one, most = (_row_axes(spec, decoder, picture, count) for count in counts)
    ranges = _ranges([none, one, most], one)
    return {axis: ranges[axis] for axis in own}


def _row_axes(spec: ModelSpec, decoder: GraphSpec, picture: Features, count: int) -> Axes:
    features = {name: np.concatenate([x] * count) for name, x in picture.items()} if count else {}
    rows = {name: np.asarray(x)[None] for name, x in spec.row_inputs(features).items()}
    return _measured(decoder, rows)


def _measured(graph: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """What the free axes of a graph are in these inputs."""
    return {
        axis: size
        for tensor in graph.inputs
        if tensor.name in inputs
        for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        if isinstance(axis, str)
    }


def _ranges(found: Sequence[Axes], usual: Axes) -> dict[str, AxisRange]:
    return {
        axis: AxisRange(min=min(x[axis] for x in found), opt=size, max=max(x[axis] for x in found))
        for axis, size in usual.items()
    }
