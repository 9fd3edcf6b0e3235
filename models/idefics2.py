"""Idefics2: SigLIP at a picture's own shape, a perceiver that makes 64 tokens of each view, a Mistral decoder.

With `do_image_splitting` a picture is seen as its four quarters, and whole. A view is given to the encoder as its
patches; the padding after a shorter view's patches is masked, and nothing that is not masked depends on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import MASKED, GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Box, Frame, Layout, Size, View
from safecode_trt.models.pixels import CENTRED_PIXELS, pixel_fields
from safecode_trt.models.spec import ModelSpec, read_json, read_preprocessor
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["Idefics2Spec", "load", "position_ids"]

# What transformers' classes assume where a file is silent.
VISION = {"image_size": 224, "patch_size": 32}
TEXT = {"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
PICTURES: dict[str, Any] = {
    **CENTRED_PIXELS,
    "size": {"shortest_edge": 378, "longest_edge": 980},
    "do_image_splitting": False,
}
FAKE, IMAGE = "<fake_token_around_image>", "<image>"
QUARTERS = 4


def load(folder: Path, config: Mapping[str, Any]) -> Idefics2Spec:
    """Reads config.json, the image processor's settings and the normalizer of a checkpoint or bundle."""
    given = read_preprocessor(folder)
    pictures = PICTURES | {key: value for key, value in given.items() if value is not None}
    vision = VISION | (config.get("vision_config") or {})
    size, patch_size = pictures["size"], int(vision["patch_size"])
    if not isinstance(size, Mapping) or not {"shortest_edge", "longest_edge"} <= size.keys():
        raise CheckpointError(
            f"{folder}: the image processor's size must have a shortest_edge and a longest_edge, got {size!r}"
        )
    if int(size["shortest_edge"]) < patch_size:
        raise CheckpointError(
            f"{folder}: size.shortest_edge is {size['shortest_edge']}; expected at least one patch of {patch_size}"
        )
    return Idefics2Spec(
        text=TextConfig.from_config(
            config.get("text_config") or TEXT,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            model_type="mistral",
        ),
        image_token_id=int(config.get("image_token_id", 32001)),
        image_seq_len=int((config.get("perceiver_config") or {}).get("resampler_n_latents", 64)),
        patch_size=patch_size,
        side=int(vision["image_size"]) // patch_size,
        **pixel_fields(pictures),
        shortest_edge=int(size["shortest_edge"]),
        longest_edge=int(size["longest_edge"]),
        do_image_splitting=bool(pictures["do_image_splitting"]),
        writes_space=not _puts_space(read_json(folder / "tokenizer.json").get("normalizer")),
    )


def _puts_space(step: object) -> bool:
    """Whether a normalizer of tokenizer.json puts a space in front of every text, even of one that has it."""
    if not isinstance(step, Mapping):
        return False
    return step.get("type") == "Prepend" or any(map(_puts_space, step.get("normalizers") or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Idefics2Spec(ModelSpec):
    """The spec of one Idefics2 checkpoint; the table of positions is `side` x `side`.

    `writes_space`: a word after a picture gets its space from the prompt, and not from the tokenizer.
    """

    text: TextConfig
    image_token_id: int
    image_seq_len: int
    patch_size: int
    side: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    shortest_edge: int
    longest_edge: int
    do_image_splitting: bool
    writes_space: bool
    max_tiles: int | None = None
    model_type: str = "idefics2"
    weights: WeightNames = WeightNames(
        embed_tokens="model.text_model.embed_tokens.weight",
        norm="model.text_model.norm.weight",
        lm_head="lm_head.weight",
        layer="model.text_model.layers.{i}.",
    )

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    @property
    def reference_layout(self) -> Layout:
        edge = self.shortest_edge
        return Layout(views=(View(resizes=((edge, edge),)),), tokens=self.image_seq_len)

    def vision_graph(self, dtype: str) -> GraphSpec:
        """Views as S patches each, their places in the table of positions, and which of them are none."""
        values, hidden = 3 * self.patch_size**2, self.text.hidden_size
        return GraphSpec(
            inputs=(
                TensorSpec(name="pixel_values", dtype=dtype, shape=("P", "S", values)),
                TensorSpec(name="position_ids", dtype="int64", shape=("P", "S")),
                TensorSpec(name="patch_bias", dtype=dtype, shape=("P", "S")),
            ),
            outputs=(
                TensorSpec(name="image_features", dtype=dtype, shape=("P", self.image_seq_len, hidden)),
            ),
        )

    def with_max_tiles(self, max_tiles: int) -> Idefics2Spec:
        return replace(self, max_tiles=max_tiles)

    def layout(self, width: int, height: int) -> Layout:
        whole = View(resizes=(self._size(width, height),))
        allowed = self.max_tiles is None or self.max_tiles >= QUARTERS
        # There is nothing to cut where a picture is one pixel wide or high.
        if not (self.do_image_splitting and allowed and min(width, height) > 1):
            return Layout(views=(whole,), tokens=self.image_seq_len)
        across, down = (0, width // 2, width), (0, height // 2, height)
        quarters = tuple(
            self._cut((across[c], down[r], across[c + 1], down[r + 1])) for r in (0, 1) for c in (0, 1)
        )
        views = (*quarters, whole)
        return Layout(views=views, tokens=len(views) * self.image_seq_len, rows=2, columns=2)

    def _cut(self, box: Box) -> View:
        """A part of the picture, resized as if it were one."""
        left, top, right, bottom = box
        return View(frame=Frame(box=box, colour=(0, 0, 0)), resizes=(self._size(right - left, bottom - top),))

    def _size(self, width: int, height: int) -> Size:
        """At most `longest_edge` in the picture's own shape, then each edge at least `shortest_edge`."""
        ratio, longest = width / height, self.longest_edge
        if width >= height and width > longest:
            width, height = longest, int(longest / ratio)
        elif height > width and height > longest:
            width, height = int(longest * ratio), longest
        return max(width, self.shortest_edge), max(height, self.shortest_edge)

    def image_text(self, layout: Layout) -> str:
        return f"{FAKE}{IMAGE * self.image_seq_len}" * len(layout.views) + FAKE

    def prompt_text(self, text: str) -> str:
        """One marker between two pictures, and a space between the last one and a word."""
        text = text.replace(FAKE + FAKE, FAKE)
        return re.sub(rf"{FAKE}(?=[^\s<])", f"{FAKE} ", text) if self.writes_space else text

    def vision_inputs(
        self, views: Sequence[NDArray[np.float32]], layout: Layout, words: NDArray[np.int64] | None
    ) -> Mapping[str, NDArray[Any]]:
        edge = self.patch_size
        grids = [(view.shape[1] // edge, view.shape[2] // edge) for view in views]
        shape = len(views), max(rows * columns for rows, columns in grids)
        pixel_values = np.zeros((*shape, 3 * edge**2), np.float32)
        positions, bias = np.zeros(shape, np.int64), np.full(shape, MASKED, np.float32)
        for i, (view, (rows, columns)) in enumerate(zip(views, grids, strict=True)):
            patches = view[:, : rows * edge, : columns * edge].reshape(3, rows, edge, columns, edge)
            count = rows * columns
            pixel_values[i, :count] = patches.transpose(1, 3, 0, 2, 4).reshape(count, -1)
            positions[i, :count] = position_ids(rows, columns, self.side).ravel()
            bias[i, :count] = 0
        return {"pixel_values": pixel_values, "position_ids": positions, "patch_bias": bias}


def position_ids(rows: int, columns: int, side: int) -> NDArray[np.int64]:
    """Where each patch (rows, columns) of a view is in the table: the view is laid over all of it.

    The arithmetic is transformers', in float32: a patch whose place is near a boundary must not change sides.
    """
    edges = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)

    def places(count: int) -> NDArray[np.int64]:
        spots = np.arange(count, dtype=np.float32) * (np.float32(1) / np.float32(count))
        return np.searchsorted(edges, np.minimum(spots, np.float32(1 - 1e-6)), side="right")

    return places(rows)[:, None] * side + places(columns)
