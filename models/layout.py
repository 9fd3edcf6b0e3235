"""How one picture becomes vision inputs and image tokens: sizes and boxes, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_PIXELS", "Box", "Frame", "Layout", "Size", "View", "tiles"]

Size = tuple[int, int]
"""Width and height in pixels."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
MAX_PIXELS = 100_000_000
"""Of a picture, as it comes and while it is made ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a whole picture is put into: cut to `box`, which is of one colour where the picture is not."""

    box: Box
    colour: tuple[int, int, int]

    @property
    def size(self) -> Size:
        left, top, right, bottom = self.box
        return right - left, bottom - top


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One image that the vision encoder sees: the picture framed, resized to each of `resizes` in turn, then cut.

    What `box` takes from outside the picture is black; without a box nothing is cut, without a frame nothing added.
    """

    resizes: tuple[Size, ...]
    box: Box | None = None
    frame: Frame | None = None

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
    whole, or of patches. `size` is the picture's own, where its features are put together by it.
    """

    views: tuple[View, ...]
    tokens: int
    rows: int = 0
    columns: int = 0
    size: Size = (0, 0)


def tiles(resizes: tuple[Size, ...], rows: int, columns: int, tile: int) -> tuple[View, ...]:
    """The square tiles of a resized picture, row by row."""
    return tuple(
        View(resizes=resizes, box=(c * tile, r * tile, (c + 1) * tile, (r + 1) * tile))
        for r in range(rows)
        for c in range(columns)
    )
