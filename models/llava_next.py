"""LLaVA-NeXT (LLaVA-1.6): the whole picture and its tiles at the resolution that fits it best.

The tiles' features are put together to one grid; what shows only padding is cut off, and every row of the grid
ends with `image_newline`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout, Size, View
from safecode_trt.models.spec import Features, read_preprocessor
from safecode_trt.models.tower import TowerSpec, select_features, tower_fields

__all__ = ["LlavaNextSpec", "load"]

IMAGE = "<image>"
# (height, width), as both files have them and both classes assume them.
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def load(folder: Path, config: Mapping[str, Any]) -> LlavaNextSpec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    preprocessor = read_preprocessor(folder)
    size, patches, features = select_features(config)
    points = config.get("image_grid_pinpoints") or PINPOINTS
    if points != (preprocessor.get("image_grid_pinpoints") or PINPOINTS):
        raise CheckpointError(
            f"{folder}: image_grid_pinpoints differ between config.json and the image processor's settings"
        )
    for name, keys in (("size", ("shortest_edge", "height", "width")), ("crop_size", ("height", "width"))):
        found = preprocessor.get(name, 224)
        edges = [found[key] for key in keys if key in found] if isinstance(found, Mapping) else [found]
        if set(edges) != {size}:
            raise CheckpointError(
                f"{folder}: {name} is {found}; expected {size}, as the vision tower takes them"
            )
    if features != patches**2 or any(edge % size for point in points for edge in point):
        raise CheckpointError(
            f"{folder}: the features of a tile are no {patches} x {patches}, or a resolution of "
            f"image_grid_pinpoints is no multiple of {size}"
        )
    return LlavaNextSpec(
        **tower_fields(
            config.get("text_config") or {},
            preprocessor,
            model_type="llama",
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        ),
        image_token_id=int(config.get("image_token_id", config.get("image_token_index", 32000))),
        image_size=size,
        image_seq_len=features,
        side=patches,
        pinpoints=tuple((width, height) for height, width in points),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaNextSpec(TowerSpec):
    """The spec of one LLaVA-NeXT checkpoint; `side` is how many features a view has along each edge."""

    side: int
    pinpoints: tuple[Size, ...]
    max_tiles: int | None = None
    model_type: str = "llava_next"

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    @property
    def reference_layout(self) -> Layout:
        """With tiles whatever `max_tiles` says: transformers, which an export is tested with, knows no limit."""
        return replace(self, max_tiles=None).layout(self.image_size, self.image_size)

    def with_max_tiles(self, max_tiles: int) -> LlavaNextSpec:
        return replace(self, max_tiles=max_tiles)

    def vision_graph(self, dtype: str) -> GraphSpec:
        """The views' features, and `image_newline`, a weight, once for each of them."""
        views = TowerSpec.vision_graph(self, dtype)
        newline = TensorSpec(name="image_newline", dtype=dtype, shape=("P", self.text.hidden_size))
        return GraphSpec(inputs=views.inputs, outputs=(*views.outputs, newline))

    def layout(self, width: int, height: int) -> Layout:
        edge = self.image_size
        most = math.inf if self.max_tiles is None else self.max_tiles
        allowed = [point for point in self.pinpoints if math.prod(point) <= most * edge**2]
        whole = View(resizes=((edge, edge),))
        if not allowed:
            return Layout(views=(whole,), tokens=self.image_seq_len + 1)
        best = best_resolution(width, height, allowed)
        columns, rows = best[0] // edge, best[1] // edge
        resized = _inside(width, height, best)
        # The picture lies in the middle of the tiles, on black.
        left, top = ((there - used) // 2 for there, used in zip(best, resized, strict=True))
        tiles = (
            View(resizes=(resized,), box=(x - left, y - top, x - left + edge, y - top + edge))
            for y in range(0, best[1], edge)
            for x in range(0, best[0], edge)
        )
        wide, high = _shown(width, height, columns * self.side, rows * self.side)
        return Layout(
            views=(whole, *tiles),
            tokens=self.image_seq_len + (wide + 1) * high,
            rows=rows,
            columns=columns,
            size=(width, height),
        )

    def image_text(self, layout: Layout) -> str:
        return IMAGE * layout.tokens

    def features(self, outputs: Mapping[str, NDArray[np.float32]], layout: Layout) -> Features:
        """The whole view's, then the tiles' as one grid without the padding, a newline after each row.

        Where there are no tiles, one newline ends the whole view's.
        """
        (base, *tiles), newline = outputs["image_features"], outputs["image_newline"][0]
        side, rows, columns = self.side, layout.rows, layout.columns
        if not tiles:
            return {"image_features": np.concatenate([base, newline[None]])}
        grid = np.stack(tiles).reshape(rows, columns, side, side, -1).swapaxes(1, 2)
        grid = grid.reshape(rows * side, columns * side, -1)
        wide, high = self._shown(layout)
        left, top = (columns * side - wide) // 2, (rows * side - high) // 2
        return _joined(base, grid[top : top + high, left : left + wide], newline)

    def reference_features(self, features: Features, layout: Layout) -> Features:
        """Those of the reference layout, its grid repeated or cut to the size of the picture's."""
        known, found = self.reference_layout, features["image_features"]
        base, newline = found[: self.image_seq_len], found[-1]
        if not layout.rows:
            return {"image_features": np.concatenate([base, newline[None]])}
        wide, high = self._shown(known)
        grid = found[len(base) :].reshape(high, wide + 1, -1)[:, :-1]
        wide, high = self._shown(layout)
        return _joined(base, np.resize(grid, (high, wide, grid.shape[-1])), newline)

    def _shown(self, layout: Layout) -> Size:
        """The columns and rows of the tiles' features that show more than padding."""
        return _shown(*layout.size, layout.columns * self.side, layout.rows * self.side)


def _joined(base: NDArray[np.float32], grid: NDArray[np.float32], newline: NDArray[np.float32]) -> Features:
    high, _, hidden = grid.shape
    lines = np.concatenate([grid, np.broadcast_to(newline, (high, 1, hidden))], axis=1)
    return {"image_features": np.concatenate([base, lines.reshape(-1, hidden)])}


def best_resolution(width: int, height: int, resolutions: Sequence[Size]) -> Size:
    """The resolution in which most of the picture's pixels are left; of several, the smallest, then the first."""

    def loss(wide: int, high: int) -> tuple[int, int]:
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, wide * high - kept

    return min(resolutions, key=lambda size: loss(*size))


def _inside(width: int, height: int, room: Size) -> Size:
    """The largest size of the picture's shape that fits."""
    across, down = room[0] / width, room[1] / height
    if across < down:
        return room[0], min(math.ceil(height * across), room[1])
    return min(math.ceil(width * down), room[0]), room[1]


def _shown(width: int, height: int, columns: int, rows: int) -> Size:
    """The columns and rows of a grid of features on which a padded picture of this size is seen.

    As many are dropped on the left as on the right, above as below. The rounding is transformers'.
    """
    if width / height > columns / rows:
        high = int(round(height * (columns / width), 7))
        return columns, rows - (rows - high) // 2 * 2
    wide = int(round(width * (rows / height), 7))
    return columns - (columns - wide) // 2 * 2, rows
