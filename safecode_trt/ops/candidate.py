"""A leading token of a steered step, as the trace shows it: the same from the host and from the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TRACED", "Candidate", "traced_candidates"]

TRACED = 8
"""How many leading tokens a trace keeps of each step, in addition to those that led before the last stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One leading token of a steered step: its logits before, between and after the two stages."""

    token_id: int
    z_real: float
    z_reference: float | None
    z_contrast: float
    shift: float
    z_final: float


def traced_candidates(leading: Iterable[Candidate], leaders: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The leading tokens of a step by falling final logit, followed by the leaders of earlier stages.

    A leader that is not among the leading tokens may be excluded, at a final logit of -inf.
    """
    first = tuple(leading)
    known = {candidate.token_id for candidate in first}
    lost = {leader.token_id: leader for leader in leaders if leader.token_id not in known}
    return (*first, *sorted(lost.values(), key=lambda leader: (-leader.z_final, leader.token_id)))
