"""InternVL3: tiles of a picture through the InternVL tower with a pixel shuffle, a Qwen-like decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout, View, tiles
from safecode_trt.models.spec import read_preprocessor
from safecode_trt.models.tower import TowerSpec, side, tower_fields

__all__ = ["InternvlSpec", "load"]

START, IMAGE, END = "<img>", "<IMG_CONTEXT>", "</img>"


def load(folder: Path, config: Mapping[str, Any]) -> InternvlSpec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    preprocessor = read_preprocessor(folder)
    vision = config.get("vision_config") or {}
    size = side(vision.get("image_size", 448), "vision_config.image_size")
    patches = size // side(vision.get("patch_size", 14), "vision_config.patch_size")
    shuffled = int(1 / float(config.get("downsample_ratio", 0.5)))
    strategy = config.get("vision_feature_select_strategy", "default")
    if patches % shuffled or strategy != "default":
        raise CheckpointError(
            f"{folder}: {patches} patches along a side, downsample_ratio {1 / shuffled:g}, "
            f"vision_feature_select_strategy {strategy}; expected whole features and the strategy default"
        )
    tile = preprocessor.get("size", {"height": 384, "width": 384})
    if not isinstance(tile, Mapping) or (tile.get("height"), tile.get("width")) != (size, size):
        raise CheckpointError(f"{folder}: size is {tile}; expected {size}, as the vision tower takes them")
    return InternvlSpec(
        **tower_fields(
            config.get("text_config") or {},
            preprocessor,
            model_type="qwen2",
            tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
        ),
        image_token_id=int(config.get("image_token_id", 151667)),
        image_size=size,
        image_seq_len=(patches // shuffled) ** 2,
        min_patches=int(preprocessor.get("min_patches", 1)),
        max_patches=int(preprocessor.get("max_patches", 12)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InternvlSpec(TowerSpec):
    """The spec of one InternVL checkpoint. Its processor always cuts tiles, whatever `crop_to_patches` says."""

    min_patches: int
    max_patches: int
    max_tiles: int | None = None
    model_type: str = "internvl"

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    @property
    def reference_layout(self) -> Layout:
        return self._layout(1, 1)

    def with_max_tiles(self, max_tiles: int) -> InternvlSpec:
        return replace(self, max_tiles=max_tiles)

    def layout(self, width: int, height: int) -> Layout:
        most = self.max_patches if self.max_tiles is None else min(self.max_patches, self.max_tiles)
        return self._layout(*self._grid(width, height, most)) if most > 1 else self._layout(1, 1)

    def _grid(self, width: int, height: int, most: int) -> tuple[int, int]:
        """Columns and rows of the shape that is nearest to the picture's.

        Of several, the largest that the picture fills by more than half.
        """
        area = self.image_size**2
        sides = range(1, most + 1)
        grids = [(c, r) for c in sides for r in sides if self.min_patches <= c * r <= most]
        best, nearest = (1, 1), float("inf")
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            distance = abs(width / height - columns / rows)
            filled = width * height > 0.5 * area * columns * rows
            if distance < nearest or (distance == nearest and filled):
                best, nearest = (columns, rows), distance
        return best

    def _layout(self, columns: int, rows: int) -> Layout:
        """The tiles row by row, and the whole picture last where there are several."""
        size = self.image_size
        views = tiles(((columns * size, rows * size),), rows, columns, size)
        if len(views) > 1:
            views = (*views, View(resizes=((size, size),)))
        return Layout(views=views, tokens=len(views) * self.image_seq_len, rows=rows, columns=columns)

    def image_text(self, layout: Layout) -> str:
        return f"{START}{IMAGE * layout.tokens}{END}"
