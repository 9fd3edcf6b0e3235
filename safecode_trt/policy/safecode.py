"""SafeCoDe (arXiv 2509.19212): contrast with a reference picture, then a shift of refusal tokens by verdict.

Knows rows of logits and the settings. The first steps of a reply go through here, the rest is plain decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from safecode_trt.config import SafeCodeConfig, SamplingParams
from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.ops.reference import Ids, Logits, top_k_ids
from safecode_trt.policy.base import (
    REAL,
    Candidate,
    Combined,
    Context,
    Fallback,
    PixelNoise,
    Plan,
    PromptEdit,
    StepTrace,
    Verdict,
)
from safecode_trt.policy.contrast import Contrast
from safecode_trt.policy.modulation import Modulation, shift_amount
from safecode_trt.policy.verdict import read_verdict

__all__ = ["TRACED", "SafeCodePolicy", "SafeCodeSteering"]

TRACED = 8
"""How many leading candidates a trace keeps of each step."""

_NO_IDS = np.empty(0, np.int64)


class SafeCodePolicy:
    """SafeCoDe with the prompts and token ids of one model.

    A stage whose weight (alpha, shift) or number of steps is 0 is left out, and so is its context; with both
    left out the reply is plain decoding, bit for bit.

    Raises:
        ConfigError: the defaults name no usable refusal or verdict tokens, though stage 2 needs them.
    """

    __slots__ = (
        "_contrasts",
        "_defaults",
        "_known",
        "_refusal_ids",
        "_settings",
        "_shifts",
        "fallback",
        "plan",
    )

    def __init__(
        self, defaults: SafeCodeDefaults, settings: SafeCodeConfig, known: Verdict | None = None
    ) -> None:
        self._known = known
        self._defaults = defaults
        self._settings = settings
        self._contrasts = settings.contrast_steps if settings.alpha > 0 else 0
        self._shifts = settings.shift_steps if settings.shift > 0 else 0
        if self._shifts:
            _check_tokens(defaults)
        self._refusal_ids: Ids = np.unique(np.asarray(defaults.refusal_token_ids, np.int64))
        self.plan: Plan = self._make_plan()
        self.fallback: Fallback = Fallback(kind=settings.fallback, text=defaults.fallback_refusal)

    def informed(self, verdict: Verdict) -> SafeCodePolicy:
        """The same stages with a verdict from elsewhere."""
        return SafeCodePolicy(self._defaults, self._settings, verdict)

    def begin(self, logits: Mapping[str, Logits]) -> SafeCodeSteering:
        """Reads the verdict, if stage 2 is on, from the logits (V,) of the context `judge`.

        Raises:
            SteeringError: the verdict cannot be trusted.
        """
        settings = self._settings
        verdict, modulation = None, None
        if self._shifts:
            verdict = self._known or self._judge(logits)
            if self._refusal_ids[-1] >= len(logits["real"]):
                raise SteeringError(f"refusal token {self._refusal_ids[-1]} is not in the model's vocabulary")
            amount = shift_amount(verdict, settings)
            modulation = Modulation(refusal_ids=self._refusal_ids, top_k=settings.top_k, amount=amount)
        return SafeCodeSteering(
            contrast=Contrast(form=settings.contrast, alpha=settings.alpha, beta=settings.beta),
            contrast_steps=self._contrasts,
            modulation=modulation,
            shift_steps=self._shifts,
            verdict=verdict,
        )

    def _judge(self, logits: Mapping[str, Logits]) -> Verdict:
        judge = logits.get("judge")
        if judge is None:
            raise SteeringError("the judge has no logits; there is no verdict")
        return read_verdict(
            judge,
            safe_id=self._defaults.safe_token_id,
            unsafe_id=self._defaults.unsafe_token_id,
            threshold=self._settings.threshold,
        )

    def _make_plan(self) -> Plan:
        settings, contexts, prompts = self._settings, [REAL], {}
        noised = self._contrasts and settings.reference == "noised"
        if self._contrasts:
            contexts.append(Context(name="noised", picture=settings.reference, lifetime="steered"))
        if self._shifts and self._known is None:
            contexts.append(Context(name="judge", prompt="judge", lifetime="prefill"))
            prompts["judge"] = PromptEdit(template=self._defaults.judge_template)
        noise = PixelNoise(sigma=settings.sigma) if noised else None
        return Plan(contexts=tuple(contexts), prompts=prompts, noise=noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeCodeSteering:
    """The two stages of one reply: stage 1 for `contrast_steps` tokens and stage 2 for `shift_steps`."""

    contrast: Contrast
    contrast_steps: int
    modulation: Modulation | None
    shift_steps: int
    verdict: Verdict | None
    answer: str | None = None

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        """As asked."""
        return asked

    @property
    def steps(self) -> int:
        return max(self.contrast_steps, self.shift_steps)

    def combine(self, step: int, logits: Logits) -> Combined:
        """One row (V,) from the real and, if stage 1 is on, the reference row of (C, V), with its trace.

        The plausibility mask belongs to stage 1: without the contrast there is none. It spares the refusal
        tokens when stage 2 raises them. Tokens outside stage 2's candidates keep their logits.

        Raises:
            SteeringError: a logit is NaN or +inf, or no token is left, before or after the stages.
        """
        if not np.isfinite(logits.max(axis=-1)).all():
            raise SteeringError(f"the model's logits of step {step} are not finite")
        real, reference = logits[0], None
        shifting = self.modulation if step < self.shift_steps else None
        out = real
        if step < self.contrast_steps:
            reference = logits[1]
            raised = shifting is not None and shifting.amount > 0
            exempt = shifting.refusal_ids if shifting is not None and raised else _NO_IDS
            out = self.contrast.apply(real, reference, exempt)
        contrasted, moved, amount = out, frozenset[int](), 0.0
        if shifting is not None:
            (out, moved), amount = shifting.apply(out), shifting.amount
        if not np.isfinite(out.max()):
            raise SteeringError(f"the steered logits of step {step} are not finite")
        candidates = tuple(
            Candidate(
                token_id=token,
                z_real=float(real[token]),
                z_reference=None if reference is None else float(reference[token]),
                z_contrast=float(contrasted[token]),
                shift=amount if token in moved else 0.0,
                z_final=float(out[token]),
            )
            for token in top_k_ids(out, TRACED).tolist()
            if np.isfinite(out[token])
        )
        return Combined(logits=out, trace=StepTrace(step=step, candidates=candidates))


def _check_tokens(defaults: SafeCodeDefaults) -> None:
    if not defaults.refusal_token_ids or min(defaults.refusal_token_ids) < 0:
        raise ConfigError(
            "refusal_token_ids must be one or more ids of 0 or more for a verdict to act on, "
            f"got {defaults.refusal_token_ids!r}; set shift to 0 to decode without a verdict"
        )
    if defaults.safe_token_id == defaults.unsafe_token_id or not defaults.judge_template.strip():
        raise ConfigError("a verdict needs a judge_template and two different tokens, safe and unsafe")
