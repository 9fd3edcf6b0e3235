"""Stage 2 of SafeCoDe (arXiv 2509.19212): the verdict moves refusal tokens among the leading candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safecode_trt.config import SafeCodeConfig
from safecode_trt.errors import SteeringError
from safecode_trt.ops.fused import FusedStep
from safecode_trt.ops.reference import Ids, Logits, refusal_shift, top_k_ids
from safecode_trt.policy.base import Verdict
from safecode_trt.policy.stage import NO_IDS, Action, First, Stage, Step

__all__ = ["Modulation", "ShiftAction", "ShiftStage", "check_vocabulary", "shift_amount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """Adds `amount` to the refusal tokens among the `top_k` leading ones, 0 for all; every other logit stays."""

    refusal_ids: Ids
    top_k: int
    amount: float

    def apply(self, z: Logits) -> tuple[Logits, frozenset[int]]:
        """The modulated row of (V,), and the ids that were moved."""
        refusals = frozenset(self.refusal_ids.tolist())
        if not self.top_k:
            return refusal_shift(z, self.refusal_ids, self.refusal_ids, self.amount), refusals
        candidates = top_k_ids(z, self.top_k)
        moved = refusals.intersection(candidates.tolist())
        return refusal_shift(z, self.refusal_ids, candidates, self.amount), moved


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftAction(Action):
    """The modulation of one reply."""

    modulation: Modulation

    def raised(self, step: int) -> Ids:
        """The refusal tokens, if they move up."""
        return self.modulation.refusal_ids if self.modulation.amount > 0 else NO_IDS

    def fused(self, before: FusedStep, contexts: Sequence[str]) -> FusedStep | None:
        """A device shifts once, and some leading tokens."""
        how = self.modulation
        if before.settings.shift_top_k or not how.top_k:
            return None
        settings = replace(before.settings, shift_top_k=how.top_k, amount=how.amount)
        return FusedStep(settings=settings, refusal_ids=how.refusal_ids)

    def apply(self, step: Step) -> Step:
        """z with the refusal tokens moved."""
        z, moved = self.modulation.apply(step.z)
        shifts = {token: step.shifts.get(token, 0.0) + self.modulation.amount for token in moved}
        return replace(step, z=z, shifts={**step.shifts, **shifts})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftStage(Stage):
    """Shifts `refusal_ids` by the verdict in the first `settings.shift_steps` steps."""

    settings: SafeCodeConfig
    refusal_ids: Ids

    def begin(self, first: First) -> ShiftAction:
        """The shift that the verdict calls for.

        Raises:
            SteeringError: there is no verdict, or a refusal token is no token.
        """
        amount = shift_amount(first.known, self.settings)
        check_vocabulary(self.refusal_ids, first)
        modulation = Modulation(refusal_ids=self.refusal_ids, top_k=self.settings.top_k, amount=amount)
        return ShiftAction(steps=self.settings.shift_steps, modulation=modulation)


def check_vocabulary(refusal_ids: Ids, first: First) -> None:
    """Holds refusal tokens against the model's.

    Raises:
        SteeringError: one is not in the vocabulary.
    """
    if refusal_ids.max() >= len(first.logits["real"]):
        raise SteeringError(f"refusal token {refusal_ids.max()} is not in the model's vocabulary")


def shift_amount(verdict: Verdict, settings: SafeCodeConfig) -> float:
    """By how much a verdict moves the refusal tokens: up if unsafe, down if safe, 0 if it abstains.

    `hard` is the full shift; `soft` is as much of it as the verdict leans to its side of the threshold.
    """
    if verdict.abstained:
        return 0.0
    if settings.verdict == "soft":
        return settings.shift * verdict.lean
    return settings.shift if verdict.unsafe else -settings.shift
