"""Plain decoding as a policy: one context, no steered step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from safecode_trt.config import SamplingParams
from safecode_trt.ops.fused import FusedSettings, FusedStep
from safecode_trt.policy.base import Combined, Fallback, Logits, Plan, Verdict

__all__ = ["PLAIN", "PlainPolicy", "PlainSteering"]


@dataclass(frozen=True, slots=True)
class PlainSteering:
    """Steers nothing."""

    steps: int = 0
    verdict: Verdict | None = None
    answer: str | None = None
    changes: int = 0

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        """As asked."""
        return asked

    def fused(self, step: int, sampling: SamplingParams) -> FusedStep:
        """The choice of a token alone."""
        return FusedStep(settings=FusedSettings(sampling=sampling))

    def combine(self, step: int, logits: Logits) -> Combined:
        """The real row of (C, V) as it is; the decode loop has no need to ask."""
        return Combined(logits=logits[0])


@dataclass(frozen=True, slots=True)
class PlainPolicy:
    """The model's own answer. There is nothing plainer to fall back on: an error, or a fixed text."""

    plan: Plan = field(default_factory=Plan)
    fallback: Fallback = field(default_factory=lambda: Fallback(kind="error"))

    def informed(self, verdict: Verdict) -> PlainPolicy:
        """The same: it asks for no verdict."""
        return self

    def without_pictures(self) -> PlainPolicy:
        """The same: it contrasts nothing."""
        return self

    def begin(self, logits: Mapping[str, Logits]) -> PlainSteering:
        """Needs no logits."""
        return PlainSteering()


PLAIN = PlainPolicy()
