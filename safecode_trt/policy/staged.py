"""A policy made of stages in order. Knows no particular stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from safecode_trt.config import SamplingParams
from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.ops.candidate import TRACED, Candidate, traced_candidates
from safecode_trt.ops.fused import FusedSettings, FusedStep
from safecode_trt.ops.reference import Logits, argmax_lowest, top_k_ids
from safecode_trt.policy.base import (
    JUDGE,
    LIFETIMES,
    REAL,
    Combined,
    Context,
    Fallback,
    Plan,
    PromptEdit,
    StepTrace,
    Verdict,
)
from safecode_trt.policy.stage import Action, First, Stage, Step
from safecode_trt.policy.verdict import read_verdict

__all__ = ["JudgeRow", "StagedPolicy", "StagedSteering"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRow:
    """The model's own verdict: a context that asks for it, and how its first logits are read."""

    defaults: SafeCodeDefaults
    threshold: float | None

    @property
    def context(self) -> Context:
        """A row that is over with the prompt."""
        return Context(name=JUDGE, prompt=JUDGE, lifetime="prefill")

    def read(self, logits: Mapping[str, Logits]) -> Verdict:
        """The verdict from the judge's row.

        Raises:
            SteeringError: it has none, or none that can be trusted.
        """
        judge = logits.get(JUDGE)
        if judge is None:
            raise SteeringError("the judge has no logits; there is no verdict")
        return read_verdict(judge, self.defaults, threshold=self.threshold)


class StagedPolicy:
    """Runs stages in order over the union of their contexts.

    With a `known` verdict there is no judge's row. A verdict within `abstain`, if that is a (low, high), is marked as
    abstained, and stages act on it neither way.

    Raises:
        ConfigError: two stages mean different things by one name, or want different noise.
    """

    __slots__ = ("_abstain", "_judge", "_known", "_stages", "fallback", "plan")

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        judge: JudgeRow,
        fallback: Fallback,
        abstain: tuple[float, ...] = (),
        known: Verdict | None = None,
    ) -> None:
        self._stages, self._judge, self._abstain, self._known = tuple(stages), judge, abstain, known
        self.fallback: Fallback = fallback
        self.plan: Plan = self._make_plan()

    def informed(self, verdict: Verdict) -> StagedPolicy:
        """The same stages with a verdict from elsewhere."""
        return StagedPolicy(
            [stage.informed(verdict) for stage in self._stages],
            judge=self._judge,
            fallback=self.fallback,
            abstain=self._abstain,
            known=verdict,
        )

    def without_pictures(self) -> StagedPolicy:
        """The stages that have something to do without a picture."""
        stages = (stage.without_pictures() for stage in self._stages)
        return StagedPolicy(
            [stage for stage in stages if stage is not None],
            judge=self._judge,
            fallback=self.fallback,
            abstain=self._abstain,
            known=self._known,
        )

    def begin(self, logits: Mapping[str, Logits]) -> StagedSteering:
        """Reads the verdict, if a stage acts on one, and starts the stages.

        Raises:
            SteeringError: the verdict cannot be trusted, or a stage cannot act on these logits.
        """
        verdict = None
        if any(stage.judged for stage in self._stages):
            verdict = self._known or self._judge.read(logits)
            low, high = self._abstain or (1.0, 0.0)
            verdict = replace(verdict, abstained=low <= verdict.p_unsafe <= high)
        first = First(logits=logits, verdict=verdict)
        return StagedSteering(
            actions=tuple(stage.begin(first) for stage in self._stages),
            contexts=tuple(context.name for context in self.plan.contexts),
            verdict=verdict,
        )

    def _make_plan(self) -> Plan:
        stages = self._stages
        contexts = [context for stage in stages for context in stage.contexts]
        prompts = [item for stage in stages for item in stage.prompts.items()]
        if self._known is None and any(stage.judged for stage in stages):
            contexts.append(self._judge.context)
            prompts.append((JUDGE, PromptEdit(template=self._judge.defaults.judge_template)))
        noises = {stage.noise for stage in stages if stage.noise is not None}
        if len(noises) > 1:
            raise ConfigError(f"the stages want different noise: {', '.join(map(str, noises))}")
        named = _merged("context", ((context.name, context) for context in contexts))
        rest = sorted(named.values(), key=lambda context: LIFETIMES.index(context.lifetime))
        return Plan(
            contexts=(REAL, *rest), prompts=_merged("prompt", prompts), noise=next(iter(noises), None)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSteering:
    """The stages of one reply; `contexts` are the names of the plan's rows."""

    actions: tuple[Action, ...]
    contexts: tuple[str, ...] = ("real",)
    verdict: Verdict | None = None

    @property
    def steps(self) -> int | None:
        """Those of the stage that acts longest."""
        steps = [action.steps for action in self.actions]
        return None if None in steps else max((count or 0 for count in steps), default=0)

    @property
    def changes(self) -> int:
        """The most steps of a stage that does not act for ever."""
        return max((action.steps or 0 for action in self.actions), default=0)

    @property
    def answer(self) -> str | None:
        """That of the first stage that has settled one."""
        return next((action.answer for action in self.actions if action.answer is not None), None)

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        """As the stages want it, one after the other."""
        for action in self.actions:
            asked = action.sampling(asked, steered=steered)
        return asked

    def fused(self, step: int, sampling: SamplingParams) -> FusedStep | None:
        """The stages of a step put together, if a device can do every one of them."""
        fused: FusedStep | None = FusedStep(settings=FusedSettings(sampling=sampling))
        for action in self._acting(step):
            fused = fused and action.fused(fused, self.contexts)
        return fused

    def combine(self, step: int, logits: Logits) -> Combined:
        """One row (V,) from the steered rows (C, V), with its trace.

        Raises:
            SteeringError: a logit is NaN or +inf, or no token is left, before or after the stages.
        """
        if not np.isfinite(logits.max(axis=-1)).all():
            raise SteeringError(f"the model's logits of step {step} are not finite")
        acting = self._acting(step)
        raised = [ids for action in acting if len(ids := action.raised(step))]
        # Fewer rows than contexts: those of the prompt alone come last and are gone.
        rows = dict(zip(self.contexts, logits, strict=False))
        state = Step(number=step, rows=rows, z=logits[0], contrasted=logits[0])
        if raised:
            state = replace(state, spared=np.unique(np.concatenate(raised)))
        for action in acting:
            state = action.apply(state)
        if not np.isfinite(state.z.max()):
            raise SteeringError(f"the steered logits of step {step} are not finite")
        return Combined(logits=state.z, trace=_trace(state))

    def _acting(self, step: int) -> list[Action]:
        return [action for action in self.actions if action.steps is None or step < action.steps]


def _trace(step: Step) -> StepTrace:
    """The leading tokens of the step, with those that led on the picture alone and after the contrast."""
    real, reference, z = step.rows["real"], step.reference, step.z

    def candidate(token: int) -> Candidate:
        return Candidate(
            token_id=token,
            z_real=float(real[token]),
            z_reference=None if reference is None else float(reference[token]),
            z_contrast=float(step.contrasted[token]),
            shift=step.shifts.get(token, 0.0),
            z_final=float(z[token]),
        )

    leading = (candidate(token) for token in top_k_ids(z, TRACED).tolist() if np.isfinite(z[token]))
    leaders = (candidate(int(argmax_lowest(row))) for row in (real, step.contrasted))
    return StepTrace(step=step.number, candidates=traced_candidates(leading, leaders), forced=step.forced)


def _merged(what: str, items: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The items by name, where one name must mean one thing."""
    merged: dict[str, T] = {}
    for name, item in items:
        if merged.setdefault(name, item) != item:
            raise ConfigError(
                f"two stages mean different things by the {what} {name!r}; leave one of them out"
            )
    return merged
