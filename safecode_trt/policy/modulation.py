"""Stage 2 of SafeCoDe (arXiv 2509.19212): the verdict moves refusal tokens among the leading candidates."""

from __future__ import annotations

from dataclasses import dataclass

from safecode_trt.config import SafeCodeConfig
from safecode_trt.ops.reference import Ids, Logits, refusal_shift, top_k_ids
from safecode_trt.policy.base import Verdict

__all__ = ["Modulation", "shift_amount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """Adds `amount` to the refusal tokens among the `top_k` leading ones; every other logit stays."""

    refusal_ids: Ids
    top_k: int
    amount: float

    def apply(self, z: Logits) -> tuple[Logits, frozenset[int]]:
        """The modulated row of (V,), and the ids that were moved."""
        candidates = top_k_ids(z, self.top_k)
        moved = frozenset(self.refusal_ids.tolist()).intersection(candidates.tolist())
        return refusal_shift(z, self.refusal_ids, candidates, self.amount), moved


def shift_amount(verdict: Verdict, settings: SafeCodeConfig) -> float:
    """By how much a verdict moves the refusal tokens: up if unsafe, down if safe.

    `hard` is the full shift, its sign from the threshold; `soft` is shift * (2 p_unsafe - 1), which knows no
    threshold.
    """
    if settings.verdict == "soft":
        return settings.shift * (2 * verdict.p_unsafe - 1)
    return settings.shift if verdict.unsafe else -settings.shift
