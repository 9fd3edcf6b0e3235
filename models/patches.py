"""Pictures of any size as a grid of patches, a square of them merged into one image token.

What families of the Qwen2-VL kind share: sizes, the order of patches, and the rotary positions of both the
vision encoder and the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import CheckpointError, PictureError
from safecode_trt.models.layout import Layout, Size, View

__all__ = ["PatchGrid", "multimodal_positions", "pixel_limits"]

Floats = NDArray[np.float32]
MOST_ELONGATED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """How a picture is cut: patches of `patch_size` pixels, `merge_size` x `merge_size` of them a token.

    A still picture stands for all of the `temporal_patch_size` frames that a patch of a video spans.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int

    @classmethod
    def from_config(
        cls, vision: Mapping[str, Any], preprocessor: Mapping[str, Any], *, patch_size: int
    ) -> PatchGrid:
        """Reads a `vision_config`, whose own default is `patch_size`, and holds the image processor's settings to it.

        Raises:
            CheckpointError: the two cut pictures differently.
        """
        grid = cls(
            patch_size=int(vision.get("patch_size", patch_size)),
            merge_size=int(vision.get("spatial_merge_size", 2)),
            temporal_patch_size=int(vision.get("temporal_patch_size", 2)),
        )
        for key, assumed in (("patch_size", 14), ("merge_size", 2), ("temporal_patch_size", 2)):
            cut, seen = int(preprocessor.get(key, assumed)), getattr(grid, key)
            if cut != seen:
                raise CheckpointError(
                    f"the image processor's {key} is {cut}, but vision_config has {seen}; "
                    "expected them to be equal"
                )
        return grid

    @property
    def token_size(self) -> int:
        """Pixels of an image token on a side."""
        return self.patch_size * self.merge_size

    @property
    def patches(self) -> int:
        """Patches of an image token."""
        return self.merge_size**2

    @property
    def values(self) -> int:
        """Numbers of a patch: channels, frames, rows and columns."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def layout(self, rows: int, columns: int) -> Layout:
        """A picture of rows x columns image tokens."""
        size = (columns * self.token_size, rows * self.token_size)
        return Layout(views=(View(resizes=(size,)),), tokens=rows * columns, rows=rows, columns=columns)

    def fitted(self, width: int, height: int, min_pixels: int, max_pixels: int) -> Layout:
        """Whole tokens of about the picture's proportions, with its own pixels or as many as the limits allow.

        Raises:
            PictureError: one side is more than 200 times the other.
        """
        if max(width, height) > MOST_ELONGATED * min(width, height):
            raise PictureError(
                f"the picture is {width} x {height}; expected one side to be at most {MOST_ELONGATED} times the "
                "other, cut it first"
            )
        token = self.token_size
        rows, columns = round(height / token), round(width / token)
        if rows * columns * token**2 > max_pixels:
            shrink = math.sqrt(height * width / max_pixels)
            rows, columns = (max(math.floor(side / shrink / token), 1) for side in (height, width))
        elif rows * columns * token**2 < min_pixels:
            grow = math.sqrt(min_pixels / (height * width))
            rows, columns = (math.ceil(side * grow / token) for side in (height, width))
        return self.layout(rows, columns)

    def pixel_values(self, view: Floats) -> Floats:
        """A picture (3, height, width) as (N, patches, values): token by token, row by row in each."""
        side, size = self.merge_size, self.patch_size
        channels, height, _ = view.shape
        cut = view.reshape(channels, height // self.token_size, side, size, -1, side, size)
        cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)  # (rows, columns, side, side, channels, size, size)
        frames = np.repeat(cut[..., None, :, :], self.temporal_patch_size, axis=-3)
        return frames.reshape(-1, self.patches, self.values)

    def coordinates(self, layout: Layout) -> NDArray[np.int64]:
        """Row and column (N, patches, 2) of every patch, in the order of `pixel_values`."""
        side = self.merge_size
        places = np.indices((layout.rows * side, layout.columns * side)).transpose(1, 2, 0)
        blocks = places.reshape(layout.rows, side, layout.columns, side, 2).transpose(0, 2, 1, 3, 4)
        return blocks.reshape(-1, self.patches, 2)

    def rotary(self, layout: Layout, head_dim: int, theta: float) -> Mapping[str, Floats]:
        """Cosines and sines (N, patches, head_dim / 2): the first half turns with the row, the second the column."""
        exponents = np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2)
        frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
        angles = self.coordinates(layout)[..., None].astype(np.float32) * frequencies
        angles = angles.reshape(layout.tokens, self.patches, -1)
        return {"rotary_cos": np.cos(angles), "rotary_sin": np.sin(angles)}


def pixel_limits(preprocessor: Mapping[str, Any]) -> Size:
    """The fewest and the most pixels that a picture is resized to, by the image processor's settings.

    Raises:
        CheckpointError: they are no limits.
    """
    size = preprocessor.get("size") or {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    low = preprocessor.get("min_pixels") or size.get("shortest_edge")
    high = preprocessor.get("max_pixels") or size.get("longest_edge")
    if not isinstance(low, int) or not isinstance(high, int) or not 0 < low <= high:
        raise CheckpointError(
            f"the image processor: expected size with shortest_edge and longest_edge, or min_pixels and "
            f"max_pixels, as numbers of pixels; got {low!r} and {high!r}"
        )
    return low, high


def multimodal_positions(is_image: NDArray[np.bool_], grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Positions (3, n + 1) in time, height and width of a prompt with pictures of (rows, columns) tokens.

    Text counts on in all three. A picture stands still in time, and what follows it continues after its longer
    side (arXiv 2409.12191).
    """
    positions = np.empty((3, len(is_image) + 1), np.int64)
    at = reached = 0
    for rows, columns in grids:
        start, count = at + int(is_image[at:].argmax()), rows * columns
        positions[:, at:start] = reached + np.arange(start - at)
        reached, at = reached + start - at, start + count
        down, along = np.divmod(np.arange(count), columns)
        positions[:, start:at] = reached + np.stack([np.zeros_like(down), down, along])
        reached += max(rows, columns)
    positions[:, at:] = reached + np.arange(len(is_image) + 1 - at)
    return positions
