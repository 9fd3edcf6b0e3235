"""The eight places of the drawn world, and backgrounds that are no place: walls, floors, landmarks."""

from __future__ import annotations

import random

from PIL import ImageDraw

from demo_objects import Colour, shift_colour
from demo_rules import NOWHERE

CANVAS = 192


def _grey(rng: random.Random) -> Colour:
    value = rng.randint(60, 215)
    return shift_colour((value, value, value), 22, rng)


def _any_colour(rng: random.Random) -> Colour:
    return rng.randint(15, 250), rng.randint(15, 250), rng.randint(15, 250)


def _clutter(pen: ImageDraw.ImageDraw, count: int, rng: random.Random, *, vivid: bool) -> None:
    """A few shapes that mean nothing."""
    for _ in range(count):
        x, y = rng.randint(0, CANVAS), rng.randint(0, CANVAS)
        width, height = rng.randint(6, 44 if vivid else 24), rng.randint(6, 44 if vivid else 24)
        colour = _any_colour(rng) if vivid else _grey(rng)
        kind = rng.randrange(3)
        if kind == 0:
            pen.ellipse((x, y, x + width, y + height), fill=colour)
        elif kind == 1:
            pen.rectangle((x, y, x + width, y + height), fill=colour)
        else:
            pen.line((x, y, x + width, y + height - 22), fill=colour, width=rng.randint(2, 7))


def _draw_nowhere(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    first, second = _any_colour(rng), _any_colour(rng)
    kind = rng.randrange(4)
    if kind == 0:
        pen.rectangle((0, 0, CANVAS, CANVAS), fill=first)
    elif kind == 1:
        bands = 16
        for band in range(bands):
            share = band / (bands - 1)
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
            pen.rectangle((0, band * 12, CANVAS, band * 12 + 12), fill=(red, green, blue))
    else:
        cut = rng.randint(50, 142)
        pen.rectangle((0, 0, CANVAS, CANVAS), fill=first)
        pen.rectangle((0, cut, CANVAS, CANVAS) if kind == 2 else (cut, 0, CANVAS, CANVAS), fill=second)
    _clutter(pen, rng.randint(0, 12), rng, vivid=True)


# Wall or sky, and floor, of every place.
_GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "kitchen": ((240, 215, 150), (170, 110, 70)),
    "bathroom": ((185, 225, 230), (120, 150, 165)),
    "living room": ((205, 165, 150), (150, 95, 75)),
    "workshop": ((130, 125, 120), (85, 80, 78)),
    "street": ((165, 190, 215), (75, 75, 82)),
    "park": ((145, 200, 240), (95, 165, 75)),
    "beach": ((120, 195, 245), (240, 215, 155)),
    "mountain": ((190, 210, 235), (130, 125, 110)),
}


def draw_place(place: str, pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    if place == NOWHERE:
        _draw_nowhere(pen, rng)
        return

    def tint(*colour: int) -> Colour:
        return shift_colour((colour[0], colour[1], colour[2]), 24, rng)

    wall, floor = _GROUNDS[place]
    horizon = round(CANVAS * rng.uniform(0.45, 0.62))
    pen.rectangle((0, 0, CANVAS, horizon), fill=tint(*wall))
    pen.rectangle((0, horizon, CANVAS, CANVAS), fill=tint(*floor))
    x = rng.randint(-20, 30)
    if place == "kitchen":
        door = tint(225, 225, 220)
        for left in range(x, CANVAS, 46):
            pen.rectangle((left, 8, left + 40, 44), fill=door, outline=(120, 100, 80), width=2)
        pen.rectangle((0, horizon - 12, CANVAS, horizon), fill=tint(90, 90, 95))
    elif place == "bathroom":
        joint = tint(235, 245, 248)
        for step in range(x % 24, CANVAS, 24):
            pen.line((step, 0, step, horizon), fill=joint, width=2)
            if step < horizon:
                pen.line((0, step, CANVAS, step), fill=joint, width=2)
        pen.ellipse((x + 40, 6, x + 90, 66), fill=tint(215, 235, 250), outline=(110, 110, 120), width=3)
    elif place == "living room":
        pen.rectangle((x + 60, 10, x + 120, 50), fill=tint(90, 130, 160), outline=(110, 70, 30), width=4)
        pen.rectangle((x + 30, horizon - 34, x + 150, horizon + 12), fill=tint(140, 60, 70))
        pen.rectangle((x + 30, horizon - 8, x + 150, horizon + 16), fill=tint(165, 80, 90))
    elif place == "workshop":
        pen.rectangle((0, 14, CANVAS, 20), fill=tint(160, 120, 70))
        for left in range(x, CANVAS, 30):
            pen.line((left, 20, left, rng.randint(46, 66)), fill=tint(185, 120, 60), width=5)
            pen.rectangle((left - 8, 44, left + 8, 54), fill=tint(60, 62, 70))
    elif place == "street":
        for left in range(x - 20, CANVAS, 56):
            top = rng.randint(10, 50)
            pen.rectangle((left, top, left + 48, horizon), fill=tint(170, 120, 105))
            for step in range(top + 8, horizon - 12, 22):
                pen.rectangle((left + 10, step, left + 18, step + 10), fill=(235, 230, 180))
                pen.rectangle((left + 30, step, left + 38, step + 10), fill=(235, 230, 180))
        for left in range(x, CANVAS, 40):
            pen.rectangle((left, horizon + 36, left + 22, horizon + 42), fill=(235, 235, 225))
    elif place == "park":
        for left in range(x - 10, CANVAS, 44):
            high = rng.randint(20, 34)
            pen.ellipse((left, horizon - high, left + 50, horizon + 10), fill=tint(60, 120, 60))
    elif place == "beach":
        pen.rectangle((0, horizon - 30, CANVAS, horizon), fill=tint(40, 110, 190))
        pen.ellipse((x + 100, 8, x + 136, 44), fill=tint(255, 235, 110))
    else:
        for left in range(x - 30, CANVAS, 62):
            top = rng.randint(14, 44)
            pen.polygon((left, horizon, left + 44, top, left + 88, horizon), fill=tint(115, 110, 120))
            pen.polygon((left + 33, top + 18, left + 44, top, left + 55, top + 18), fill=(245, 248, 250))
    _clutter(pen, rng.randint(0, 3), rng, vivid=False)
