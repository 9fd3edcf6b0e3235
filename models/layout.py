"""How one picture becomes vision inputs and image tokens: sizes and boxes, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Box", "Layout", "Size", "View", "tiles"]

Size = tuple[int, int]
"""Width and height in pixels."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One image that the vision encoder sees: the picture resized to each of `resizes` in turn, then cut.

    What `box` takes from outside the picture is black; without a box nothing is cut.
    """

    resizes: tuple[Size, ...]
    box: Box | None = None

    @property
    def size(self) -> Size:
        """Of the view itself."""
        if self.box is None:
            return self.resizes[-1]
        left, top, right, bottom = self.box
        return right - left, bottom - top


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The views of one picture in the order in which they are encoded, and the image tokens they become.

    `rows` x `columns` is the grid that the family lays over the picture: of tiles, 0 x 0 where there is only the
    whole, or of patches.
    """

    views: tuple[View, ...]
    tokens: int
    rows: int = 0
    columns: int = 0


def tiles(resizes: tuple[Size, ...], rows: int, columns: int, tile: int) -> tuple[View, ...]:
    """The square tiles of a resized picture, row by row."""
    return tuple(
        View(resizes=resizes, box=(c * tile, r * tile, (c + 1) * tile, (r + 1) * tile))
        for r in range(rows)
        for c in range(columns)
    )
