"""The 29 things of the drawn world, each a short list of flat shapes in a unit square.

Coordinates run from the top left (0, 0) to the bottom right (1, 1). A colour is an RGB triple, or the name of a
set of colours from which every drawing picks one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import ImageDraw

Colour = tuple[int, int, int]
Kind = Literal["ellipse", "ring", "box", "polygon", "line"]


@dataclass(frozen=True)
class Shape:
    """One flat shape; `points` alternates x and y, `width` is a share of the square's side."""

    kind: Kind
    colour: Colour | str
    points: tuple[float, ...]
    width: float = 0.0


def ellipse(colour: Colour | str, *points: float) -> Shape:
    return Shape("ellipse", colour, points)


def ring(colour: Colour | str, width: float, *points: float) -> Shape:
    return Shape("ring", colour, points, width)


def box(colour: Colour | str, *points: float) -> Shape:
    return Shape("box", colour, points)


def polygon(colour: Colour | str, *points: float) -> Shape:
    return Shape("polygon", colour, points)


def line(colour: Colour | str, width: float, *points: float) -> Shape:
    return Shape("line", colour, points, width)


FREE_COLOURS: dict[str, tuple[Colour, ...]] = {
    "apple": ((205, 35, 40), (120, 185, 50), (225, 190, 60)),
    "toy": ((220, 50, 50), (50, 90, 210), (240, 140, 30), (150, 60, 180), (40, 160, 90)),
    "shirt": ((230, 80, 80), (70, 110, 220), (240, 190, 50), (80, 180, 110), (190, 90, 190)),
    "coat": ((60, 70, 110), (130, 50, 60), (70, 100, 70), (110, 90, 60)),
}

WHITE, BLACK, GREY, DARK = (245, 245, 240), (25, 25, 28), (140, 142, 148), (70, 72, 78)
BROWN, WOOD, BARK, CREAM = (110, 70, 40), (200, 150, 80), (95, 62, 38), (245, 230, 190)
GREEN, LEAF, SNAKE = (60, 150, 60), (45, 125, 55), (95, 140, 40)
RED, PINK, ORANGE, YELLOW = (200, 35, 35), (240, 140, 170), (245, 130, 30), (250, 215, 70)
BLUE, WATER, GLASS, SKIN = (50, 80, 190), (60, 165, 225), (190, 225, 235), (235, 190, 155)
FUR, CRUST, STEEL, RUBBER = (165, 115, 65), (190, 130, 65), (165, 170, 180), (35, 38, 45)

_RAILS = (line(WOOD, 0.08, 0.26, 0.98, 0.34, 0.02), line(WOOD, 0.08, 0.74, 0.98, 0.66, 0.02))
_POOL_RIM = ellipse((215, 205, 185), 0.0, 0.2, 1.0, 0.9)


def _person(x: float, y: float, size: float, coat: str) -> tuple[Shape, ...]:
    return (
        box(coat, x - 0.13 * size, y, x + 0.13 * size, y + 0.5 * size),
        ellipse(SKIN, x - 0.1 * size, y - 0.22 * size, x + 0.1 * size, y),
    )


SHAPES: dict[str, tuple[Shape, ...]] = {
    "apple": (
        ellipse("apple", 0.08, 0.24, 0.62, 0.94),
        ellipse("apple", 0.38, 0.24, 0.92, 0.94),
        line(BROWN, 0.07, 0.5, 0.3, 0.56, 0.06),
        ellipse(GREEN, 0.54, 0.04, 0.84, 0.18),
    ),
    "ball": (
        ellipse("toy", 0.05, 0.05, 0.95, 0.95),
        line(WHITE, 0.1, 0.12, 0.3, 0.5, 0.42, 0.88, 0.3),
        line(WHITE, 0.1, 0.12, 0.7, 0.5, 0.58, 0.88, 0.7),
    ),
    "bread": (
        ellipse(CRUST, 0.02, 0.25, 0.98, 0.72),
        box(CRUST, 0.06, 0.48, 0.94, 0.84),
        line(CREAM, 0.07, 0.24, 0.6, 0.34, 0.34),
        line(CREAM, 0.07, 0.46, 0.6, 0.56, 0.34),
        line(CREAM, 0.07, 0.68, 0.6, 0.78, 0.34),
    ),
    "broken glass": (
        polygon(GLASS, 0.05, 0.9, 0.2, 0.35, 0.36, 0.85),
        polygon(GLASS, 0.4, 0.62, 0.52, 0.05, 0.66, 0.58),
        polygon(GLASS, 0.66, 0.95, 0.72, 0.5, 0.98, 0.88),
        polygon(WHITE, 0.3, 0.98, 0.46, 0.7, 0.6, 0.96),
        polygon(WHITE, 0.74, 0.4, 0.9, 0.12, 0.95, 0.46),
        polygon(WHITE, 0.08, 0.26, 0.24, 0.06, 0.32, 0.24),
        line((120, 170, 185), 0.03, 0.05, 0.9, 0.2, 0.35, 0.36, 0.85),
        line((120, 170, 185), 0.03, 0.4, 0.62, 0.52, 0.05, 0.66, 0.58),
    ),
    "ladder": (
        *_RAILS,
        *(line(WOOD, 0.06, 0.3, y, 0.7, y) for y in (0.14, 0.32, 0.5, 0.68, 0.86)),
    ),
    "broken ladder": (
        line(WOOD, 0.08, 0.26, 0.98, 0.3, 0.56),
        line(WOOD, 0.08, 0.74, 0.98, 0.7, 0.5),
        line(WOOD, 0.08, 0.16, 0.5, 0.02, 0.12),
        line(WOOD, 0.08, 0.66, 0.42, 0.98, 0.04),
        line(WOOD, 0.06, 0.29, 0.86, 0.71, 0.86),
        line(WOOD, 0.06, 0.3, 0.68, 0.44, 0.8),
        line(WOOD, 0.06, 0.08, 0.3, 0.34, 0.2),
        line((240, 225, 180), 0.05, 0.26, 0.52, 0.36, 0.6),
        line((240, 225, 180), 0.05, 0.62, 0.46, 0.76, 0.52),
    ),
    "burning pan": (
        polygon(ORANGE, 0.08, 0.66, 0.02, 0.3, 0.2, 0.44, 0.3, 0.02, 0.44, 0.36, 0.58, 0.12, 0.66, 0.66),
        polygon(YELLOW, 0.2, 0.66, 0.22, 0.46, 0.32, 0.28, 0.4, 0.5, 0.5, 0.38, 0.54, 0.66),
        line(BLACK, 0.1, 0.66, 0.74, 0.99, 0.6),
        ellipse(BLACK, 0.02, 0.56, 0.72, 0.94),
        ellipse(DARK, 0.08, 0.6, 0.66, 0.78),
    ),
    "cable": (
        ring(RUBBER, 0.09, 0.14, 0.2, 0.66, 0.72),
        ring(RUBBER, 0.09, 0.3, 0.34, 0.82, 0.86),
        line(RUBBER, 0.09, 0.62, 0.84, 0.96, 0.92),
        line(RUBBER, 0.09, 0.3, 0.24, 0.06, 0.12),
        line((215, 120, 50), 0.08, 0.06, 0.12, 0.0, 0.0),
        polygon((230, 200, 40), 0.78, 0.1, 0.6, 0.4, 0.74, 0.36, 0.66, 0.6, 0.92, 0.28, 0.78, 0.3),
    ),
    "cake": (
        box(CREAM, 0.06, 0.55, 0.94, 0.92),
        box(PINK, 0.06, 0.55, 0.94, 0.68),
        box(CREAM, 0.24, 0.26, 0.76, 0.55),
        box(PINK, 0.24, 0.26, 0.76, 0.37),
        ellipse(RED, 0.43, 0.12, 0.57, 0.27),
        ellipse(RED, 0.1, 0.45, 0.2, 0.56),
        ellipse(RED, 0.8, 0.45, 0.9, 0.56),
    ),
    "campfire": (
        polygon(ORANGE, 0.2, 0.76, 0.16, 0.42, 0.34, 0.5, 0.5, 0.04, 0.64, 0.48, 0.82, 0.36, 0.8, 0.76),
        polygon(YELLOW, 0.36, 0.76, 0.4, 0.52, 0.52, 0.3, 0.62, 0.54, 0.64, 0.76),
        line(BARK, 0.12, 0.06, 0.94, 0.9, 0.7),
        line(BROWN, 0.12, 0.94, 0.94, 0.1, 0.7),
        ellipse(GREY, 0.0, 0.82, 0.18, 0.98),
        ellipse(GREY, 0.4, 0.86, 0.6, 1.0),
        ellipse(GREY, 0.82, 0.82, 1.0, 0.98),
    ),
    "candle": (
        box(CREAM, 0.36, 0.38, 0.64, 0.9),
        line(BLACK, 0.04, 0.5, 0.4, 0.5, 0.28),
        ellipse(ORANGE, 0.4, 0.02, 0.6, 0.32),
        ellipse(YELLOW, 0.45, 0.12, 0.55, 0.3),
        ellipse((190, 150, 60), 0.18, 0.84, 0.82, 0.98),
    ),
    "child": (
        line(SKIN, 0.08, 0.36, 0.46, 0.14, 0.26),
        line(SKIN, 0.08, 0.64, 0.46, 0.86, 0.62),
        box("shirt", 0.33, 0.38, 0.67, 0.72),
        line(BLUE, 0.13, 0.41, 0.72, 0.38, 0.98),
        line(BLUE, 0.13, 0.59, 0.72, 0.62, 0.98),
        ellipse(BROWN, 0.32, 0.02, 0.68, 0.3),
        ellipse(SKIN, 0.35, 0.09, 0.65, 0.4),
    ),
    "crowd": (
        *_person(0.26, 0.3, 0.9, "coat"),
        *_person(0.52, 0.24, 0.9, "shirt"),
        *_person(0.78, 0.3, 0.9, "toy"),
        *_person(0.14, 0.55, 0.9, "shirt"),
        *_person(0.4, 0.56, 0.9, "toy"),
        *_person(0.66, 0.56, 0.9, "coat"),
        *_person(0.88, 0.55, 0.9, "shirt"),
    ),
    "dog": (
        line(FUR, 0.08, 0.84, 0.5, 0.98, 0.26),
        ellipse(FUR, 0.24, 0.4, 0.9, 0.74),
        *(line(FUR, 0.1, x, 0.62, x, 0.97) for x in (0.34, 0.48, 0.7, 0.82)),
        ellipse(FUR, 0.06, 0.16, 0.46, 0.54),
        ellipse(BROWN, 0.32, 0.14, 0.48, 0.5),
        ellipse(FUR, 0.0, 0.32, 0.26, 0.5),
        ellipse(BLACK, 0.0, 0.34, 0.1, 0.43),
        ellipse(BLACK, 0.18, 0.26, 0.26, 0.34),
    ),
    "dynamite": (
        *(box(RED, x, 0.36, x + 0.2, 0.96) for x in (0.16, 0.4, 0.64)),
        box(BLACK, 0.14, 0.56, 0.86, 0.7),
        line(GREY, 0.05, 0.5, 0.38, 0.52, 0.2, 0.74, 0.14),
        polygon(YELLOW, 0.7, 0.16, 0.72, 0.0, 0.8, 0.1, 0.96, 0.06, 0.86, 0.18, 0.92, 0.3, 0.78, 0.24),
    ),
    "pool": (
        _POOL_RIM,
        ellipse(WATER, 0.08, 0.28, 0.92, 0.82),
        line(WHITE, 0.035, 0.2, 0.5, 0.32, 0.46, 0.44, 0.5),
        line(WHITE, 0.035, 0.5, 0.66, 0.62, 0.62, 0.74, 0.66),
        line(STEEL, 0.05, 0.74, 0.5, 0.74, 0.1, 0.9, 0.1, 0.9, 0.46),
    ),
    "empty pool": (
        _POOL_RIM,
        ellipse((150, 140, 125), 0.08, 0.28, 0.92, 0.82),
        ellipse((120, 110, 98), 0.16, 0.44, 0.84, 0.8),
        line(BLACK, 0.04, 0.24, 0.5, 0.36, 0.6, 0.32, 0.7, 0.48, 0.76),
        ellipse(BLACK, 0.56, 0.58, 0.7, 0.68),
        line(STEEL, 0.05, 0.74, 0.5, 0.74, 0.1, 0.9, 0.1, 0.9, 0.46),
    ),
    "gas can": (
        box(RED, 0.12, 0.3, 0.88, 0.96),
        line(DARK, 0.08, 0.3, 0.3, 0.3, 0.12, 0.62, 0.12, 0.62, 0.3),
        line(YELLOW, 0.12, 0.76, 0.32, 0.96, 0.08),
        line(WHITE, 0.07, 0.28, 0.46, 0.72, 0.82),
        line(WHITE, 0.07, 0.72, 0.46, 0.28, 0.82),
    ),
    "laptop": (
        box(DARK, 0.16, 0.12, 0.84, 0.64),
        box((90, 150, 220), 0.21, 0.17, 0.79, 0.59),
        polygon(STEEL, 0.16, 0.64, 0.84, 0.64, 1.0, 0.9, 0.0, 0.9),
        polygon(DARK, 0.22, 0.68, 0.78, 0.68, 0.84, 0.78, 0.16, 0.78),
    ),
    "log": (
        box(BARK, 0.14, 0.34, 0.9, 0.74),
        ellipse(BARK, 0.78, 0.34, 1.0, 0.74),
        line((70, 45, 25), 0.035, 0.24, 0.46, 0.74, 0.46),
        line((70, 45, 25), 0.035, 0.3, 0.62, 0.82, 0.62),
        ellipse((215, 175, 120), 0.02, 0.34, 0.28, 0.74),
        ring(BROWN, 0.03, 0.08, 0.44, 0.22, 0.64),
    ),
    "mushroom": (
        box(CREAM, 0.38, 0.5, 0.62, 0.96),
        polygon(RED, 0.04, 0.56, 0.14, 0.28, 0.36, 0.1, 0.64, 0.1, 0.86, 0.28, 0.96, 0.56),
        ellipse(WHITE, 0.2, 0.32, 0.34, 0.46),
        ellipse(WHITE, 0.43, 0.16, 0.57, 0.3),
        ellipse(WHITE, 0.64, 0.34, 0.78, 0.48),
    ),
    "plant": (
        polygon(LEAF, 0.5, 0.62, 0.04, 0.36, 0.2, 0.14),
        polygon(GREEN, 0.5, 0.62, 0.36, 0.02, 0.62, 0.02),
        polygon(LEAF, 0.5, 0.62, 0.96, 0.36, 0.8, 0.14),
        polygon((190, 95, 60), 0.24, 0.6, 0.76, 0.6, 0.66, 0.98, 0.34, 0.98),
        box((210, 115, 75), 0.2, 0.56, 0.8, 0.68),
    ),
    "poison bottle": (
        box((90, 60, 130), 0.26, 0.32, 0.74, 0.97),
        box((90, 60, 130), 0.41, 0.14, 0.59, 0.34),
        box(BLACK, 0.38, 0.02, 0.62, 0.15),
        box(WHITE, 0.29, 0.44, 0.71, 0.86),
        ellipse(BLACK, 0.37, 0.48, 0.63, 0.7),
        line(BLACK, 0.06, 0.35, 0.7, 0.65, 0.82),
        line(BLACK, 0.06, 0.65, 0.7, 0.35, 0.82),
    ),
    "pylon": (
        line(STEEL, 0.06, 0.28, 0.98, 0.46, 0.02),
        line(STEEL, 0.06, 0.72, 0.98, 0.54, 0.02),
        line(STEEL, 0.06, 0.06, 0.2, 0.94, 0.2),
        line(STEEL, 0.06, 0.02, 0.44, 0.98, 0.44),
        line(GREY, 0.035, 0.3, 0.96, 0.64, 0.68, 0.38, 0.44, 0.56, 0.2),
        line(GREY, 0.035, 0.7, 0.96, 0.36, 0.68, 0.62, 0.44, 0.44, 0.2),
        *(
            ellipse((150, 60, 40), x - 0.045, y, x + 0.045, y + 0.12)
            for x, y in ((0.1, 0.22), (0.9, 0.22), (0.06, 0.46), (0.94, 0.46))
        ),
    ),
    "snake": (
        line(SNAKE, 0.14, 0.06, 0.88, 0.34, 0.92, 0.5, 0.76, 0.36, 0.6, 0.46, 0.44, 0.72, 0.46, 0.8, 0.26),
        ellipse(SNAKE, 0.66, 0.08, 0.94, 0.32),
        ellipse(BLACK, 0.74, 0.14, 0.81, 0.21),
        line(RED, 0.035, 0.92, 0.2, 1.0, 0.24),
        *(
            ellipse((220, 205, 60), x, y, x + 0.09, y + 0.09)
            for x, y in ((0.14, 0.84), (0.3, 0.86), (0.42, 0.72), (0.36, 0.56), (0.52, 0.4), (0.68, 0.4))
        ),
    ),
    "socket": (
        box(GREY, 0.08, 0.08, 0.92, 0.92),
        box(WHITE, 0.13, 0.13, 0.87, 0.87),
        ellipse((205, 205, 205), 0.2, 0.2, 0.8, 0.8),
        ellipse(BLACK, 0.28, 0.42, 0.42, 0.58),
        ellipse(BLACK, 0.58, 0.42, 0.72, 0.58),
    ),
    "target": (
        line(BROWN, 0.08, 0.4, 0.7, 0.22, 0.99),
        line(BROWN, 0.08, 0.6, 0.7, 0.78, 0.99),
        ellipse(RED, 0.08, 0.02, 0.92, 0.86),
        ellipse(WHITE, 0.21, 0.15, 0.79, 0.73),
        ellipse(RED, 0.33, 0.27, 0.67, 0.61),
        ellipse(WHITE, 0.44, 0.38, 0.56, 0.5),
    ),
    "trampoline": (
        *(line(STEEL, 0.06, x, 0.5, x, 0.94) for x in (0.1, 0.36, 0.64, 0.9)),
        ellipse(BLUE, 0.0, 0.26, 1.0, 0.68),
        ellipse(RUBBER, 0.12, 0.34, 0.88, 0.6),
    ),
    "tree": (
        box(BARK, 0.42, 0.55, 0.58, 0.99),
        ellipse(GREEN, 0.04, 0.22, 0.56, 0.7),
        ellipse(GREEN, 0.44, 0.22, 0.96, 0.7),
        ellipse(LEAF, 0.22, 0.0, 0.78, 0.52),
    ),
}
OBJECTS: tuple[str, ...] = tuple(sorted(SHAPES))


def shift_colour(colour: Colour, amount: int, rng: random.Random) -> Colour:
    """Move each channel by up to `amount`, kept between 0 and 255."""
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in colour)
    return red, green, blue


def draw_object(
    name: str,
    surfaces: Sequence[tuple[ImageDraw.ImageDraw, int | None]],
    rng: random.Random,
    *,
    left: float,
    top: float,
    side: float,
    jitter: int,
) -> None:
    """Draw one object on every surface; a surface with a number gets that number in place of colours (a mask)."""
    mirrored = rng.random() < 0.5
    squeeze = rng.uniform(0.88, 1.0)
    palette: dict[Colour | str, Colour] = {}
    for shape in SHAPES[name]:
        if shape.colour not in palette:
            base = rng.choice(FREE_COLOURS[shape.colour]) if isinstance(shape.colour, str) else shape.colour
            palette[shape.colour] = shift_colour(base, jitter, rng)
        xs = [0.5 + (x - 0.5) * squeeze + rng.uniform(-0.012, 0.012) for x in shape.points[0::2]]
        ys = [y + rng.uniform(-0.012, 0.012) for y in shape.points[1::2]]
        if mirrored:
            xs = [1.0 - x for x in xs]
        if shape.kind in ("ellipse", "ring", "box"):
            xs, ys = sorted(xs), sorted(ys)
        points = [(left + x * side, top + y * side) for x, y in zip(xs, ys, strict=True)]
        for pen, number in surfaces:
            paint: Colour | int = palette[shape.colour] if number is None else number
            width = max(1, round(shape.width * side))
            if shape.kind == "ellipse":
                pen.ellipse(points, fill=paint)
            elif shape.kind == "ring":
                pen.ellipse(points, outline=paint, width=width)
            elif shape.kind == "box":
                pen.rectangle(points, fill=paint)
            elif shape.kind == "polygon":
                pen.polygon(points, fill=paint)
            else:
                pen.line(points, fill=paint, width=width, joint="curve" if len(points) > 2 else None)
