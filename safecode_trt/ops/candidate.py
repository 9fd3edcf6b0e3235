"""A leading token of a steered step, as the trace shows it: the same from the host and from the device."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Candidate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One leading token of a steered step: its logits before, between and after the two stages."""

    token_id: int
    z_real: float
    z_reference: float | None
    z_contrast: float
    shift: float
    z_final: float
