"""What a verdict can do without logits: refuse with a fixed text, or be told to the model in its prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from safecode_trt.config import Prompts
from safecode_trt.policy.base import Context, PromptEdit, Verdict
from safecode_trt.policy.stage import Action, First, Stage, Step

__all__ = ["GateStage", "RowAction", "VerdictTextStage", "verdict_text_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStage(Stage):
    """Answers with `text` if the verdict is unsafe, and leaves the model alone if it is not or abstains."""

    text: str

    def begin(self, first: First) -> Action:
        """Settles the answer, or nothing.

        Raises:
            SteeringError: there is no verdict.
        """
        refused = first.known.unsafe and not first.known.abstained
        return Action(answer=self.text if refused else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAction(Action):
    """Goes on with the row of another context instead of the real one."""

    context: str

    def apply(self, step: Step) -> Step:
        """z is that row; nothing is contrasted."""
        return replace(step, z=step.rows[self.context])


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictTextStage(Stage):
    """The request with the verdict in words; until that is known, both forms of the request are prepared."""

    safe: PromptEdit
    unsafe: PromptEdit
    known: bool = False

    def informed(self, verdict: Verdict) -> VerdictTextStage:
        """The one form that the verdict calls for."""
        told = self.unsafe if verdict.unsafe else self.safe
        return replace(self, contexts=(), prompts={"request": told}, known=True)

    def begin(self, first: First) -> Action:
        """Chooses the row.

        Raises:
            SteeringError: there is no verdict.
        """
        if self.known or not first.known.unsafe:
            return Action()
        return RowAction(steps=None, context="warned")


def verdict_text_stage(prompts: Prompts) -> VerdictTextStage:
    """The stage before there is a verdict."""
    safe, unsafe = (
        PromptEdit(template=text) for text in (prompts.verdict_text_safe, prompts.verdict_text_unsafe)
    )
    return VerdictTextStage(
        contexts=(Context(name="warned", prompt="warned", lifetime="steered"),),
        prompts={"request": safe, "warned": unsafe},
        judged=True,
        safe=safe,
        unsafe=unsafe,
    )
