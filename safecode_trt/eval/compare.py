"""Differences between arms, on the items that both have answered: each mode against the first, ablations to their base.

A figure is a value per item; what an item says nothing about has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from safecode_trt.eval.arms import Arm
from safecode_trt.eval.metrics import Difference, Judged, paired_bootstrap

__all__ = ["FIGURES", "Comparison", "Figure", "compare_arms"]

Figure = Literal["right", "attack_success", "over_refusal"]
FIGURES: tuple[Figure, ...] = get_args(Figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How much larger a figure is in `second` than in `first`. `right` is the mean of both sides."""

    first: str
    second: str
    figure: Figure
    difference: Difference


def compare_arms(
    arms: Sequence[Arm], judged: Mapping[str, Sequence[Judged]], *, seed: int
) -> tuple[Comparison, ...]:
    """The comparisons that a report shows; a figure without a common item is left out."""
    names = {arm.name for arm in arms}
    pairs = [
        (first, arm.name)
        for arm in arms[1:]
        if (first := arm.base if arm.base in names and arm.base else arms[0].name) != arm.name
    ]
    found = []
    for first, second in pairs:
        for figure in FIGURES:
            values = [_values(judged[name], figure) for name in (first, second)]
            if values[0].keys() & values[1].keys():
                sides = {entry.key: entry.side for entry in judged[second]}
                sides |= {entry.key: entry.side for entry in judged[first]}
                difference = paired_bootstrap(values[0], values[1], seed=seed, strata=sides)
                found.append(Comparison(first=first, second=second, figure=figure, difference=difference))
    return tuple(found)


def _values(judged: Sequence[Judged], figure: Figure) -> dict[str, float]:
    """The figure by item."""
    flags = {entry.key: _flag(entry, figure) for entry in judged}
    return {key: float(flag) for key, flag in flags.items() if flag is not None}


def _flag(entry: Judged, figure: Figure) -> bool | None:
    if figure == "right":
        return entry.right
    if figure == "attack_success":
        return entry.attacked
    return entry.refused if entry.side == "safe" else None
