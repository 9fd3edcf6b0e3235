"""Idefics3, the architecture of SmolVLM: SigLIP encoder, pixel shuffle, Llama decoder.

A picture is one global image, or with `do_image_splitting` a grid of tiles with row and column tokens and
the global image last (the layout of transformers' Idefics3Processor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safecode_trt.contract import GraphSpec, square_vision_graph
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout, Size, View, tiles
from safecode_trt.models.pixels import CENTRED_PIXELS, pixel_fields
from safecode_trt.models.spec import ModelSpec, read_preprocessor
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["Idefics3Spec", "load", "read_spec"]

LARGEST_EDGE = 4096
GRID_TOKENS = 6  # <row_1_col_1> to <row_6_col_6>
# What transformers' classes assume where a file is silent.
VISION = {"image_size": 224, "patch_size": 32}
TEXT = {"model_type": "llama", "rms_norm_eps": 1e-5}
PICTURES: dict[str, Any] = {
    **CENTRED_PIXELS,
    "resample": 1,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
}
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


def load(folder: Path, config: Mapping[str, Any]) -> Idefics3Spec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    return read_spec(folder, config, model_type="idefics3")


def read_spec(folder: Path, config: Mapping[str, Any], *, model_type: str) -> Idefics3Spec:
    """The spec of a checkpoint of either name.

    Raises:
        CheckpointError: a value is unusable.
    """
    given = read_preprocessor(folder)
    pictures = PICTURES | {key: value for key, value in given.items() if value is not None}
    vision = VISION | (config.get("vision_config") or {})
    image_size, tile = int(vision["image_size"]), _edge(pictures, "max_image_size")
    if tile != image_size:
        raise CheckpointError(
            f"{folder}: max_image_size.longest_edge is {tile}, but vision_config.image_size is {image_size}; "
            "expected them to be equal"
        )
    side = image_size // int(vision["patch_size"]) // int(config.get("scale_factor", 2))
    return Idefics3Spec(
        model_type=model_type,
        text=TextConfig.from_config(
            config.get("text_config") or TEXT,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        ),
        image_token_id=int(config.get("image_token_id", 128257)),
        image_seq_len=side**2,
        image_size=image_size,
        **pixel_fields(pictures),
        longest_edge=_edge(pictures, "size"),
        do_image_splitting=bool(pictures["do_image_splitting"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Idefics3Spec(ModelSpec):
    """The spec of one Idefics3 or SmolVLM2 checkpoint."""

    model_type: str
    text: TextConfig
    image_token_id: int
    image_seq_len: int
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    longest_edge: int
    do_image_splitting: bool
    max_tiles: int | None = None
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
        return self._layout(((self.image_size, self.image_size),))

    def vision_graph(self, dtype: str) -> GraphSpec:
        return square_vision_graph(self.image_size, self.image_seq_len, self.text.hidden_size, dtype)

    def with_max_tiles(self, max_tiles: int) -> Idefics3Spec:
        return replace(self, max_tiles=max_tiles)

    def layout(self, width: int, height: int) -> Layout:
        size = self.image_size
        if not self.do_image_splitting or self.max_tiles == 0:
            return self._layout((_longest_edge(width, height, self.longest_edge),))
        first, whole = self._grid(width, height)
        columns, rows = whole[0] // size, whole[1] // size
        if max(rows, columns) > GRID_TOKENS:
            raise CheckpointError(
                f"size.longest_edge {self.longest_edge} makes {rows} x {columns} tiles; "
                f"the tokenizer has row and column tokens up to {GRID_TOKENS}"
            )
        return (
            self._layout((first, whole), rows, columns)
            if rows * columns > 1
            else self._layout((first, whole))
        )

    def _grid(self, width: int, height: int) -> tuple[Size, Size]:
        """The first size of a picture and that of its whole tiles, at the largest longest edge that is allowed.

        Below the checkpoint's own it is a multiple of a tile, because the grid rounds it up to one; the last makes
        one tile.
        """
        size = self.image_size
        most = math.inf if self.max_tiles is None else self.max_tiles
        edges = (self.longest_edge, *range((self.longest_edge - 1) // size * size, 0, -size))
        firsts = (_longest_edge(width, height, edge) for edge in edges)
        grids = ((first, _whole_tiles(*first, size)) for first in firsts)
        return next(grid for grid in grids if math.prod(grid[1]) <= most * size**2)

    def _layout(self, resizes: tuple[Size, ...], rows: int = 0, columns: int = 0) -> Layout:
        """The tiles row by row, the whole picture last."""
        size = self.image_size
        whole = View(resizes=(*resizes, (size, size)))
        views = (*tiles(resizes, rows, columns, size), whole)
        return Layout(views=views, tokens=len(views) * self.image_seq_len, rows=rows, columns=columns)

    def image_text(self, layout: Layout) -> str:
        features = IMAGE * self.image_seq_len
        whole = f"{FAKE}{GLOBAL}{features}{FAKE}"
        if layout.rows == 0:
            return whole
        grid = "".join(
            "".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{features}" for c in range(layout.columns)) + "\n"
            for r in range(layout.rows)
        )
        return f"{grid}\n{whole}"


def _edge(pictures: Mapping[str, Any], key: str) -> int:
    """A size that the image processor's settings give by its longest edge."""
    size = pictures[key]
    edge = size.get("longest_edge") if isinstance(size, Mapping) else None
    if not isinstance(edge, int) or edge < 1:
        raise CheckpointError(f"the image processor's {key} must have a longest_edge, got {size!r}")
    return edge


def _longest_edge(width: int, height: int, edge: int) -> tuple[int, int]:
    """Scales so that the longest edge is `edge`; the other is made even, both at least 1, at most 4096."""
    ratio = width / height
    if width >= height:
        width, height = edge, _even(int(edge / ratio))
    else:
        width, height = _even(int(edge * ratio)), edge
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > LARGEST_EDGE:
        width, height = LARGEST_EDGE, int(LARGEST_EDGE / ratio)
    elif height > width and height > LARGEST_EDGE:
        width, height = int(LARGEST_EDGE * ratio), LARGEST_EDGE
    return max(width, 1), max(height, 1)


def _even(value: int) -> int:
    return value + value % 2


def _whole_tiles(width: int, height: int, tile: int) -> tuple[int, int]:
    """Rounds up to whole tiles, the longer edge first, as the reference processor does."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return width, height
