"""What policies are made of: a stage names the contexts it needs and turns one row of logits into another per step.

Knows no particular stage, and nothing of how stages are put together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from safecode_trt.config import SamplingParams
from safecode_trt.errors import SteeringError
from safecode_trt.ops.fused import FusedStep
from safecode_trt.ops.reference import Ids, Logits
from safecode_trt.policy.base import Context, Noise, PromptEdit, Verdict

__all__ = ["NO_IDS", "Action", "First", "Stage", "Step"]

NO_IDS: Ids = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """What a reply begins with: the logits (V,) after every prompt, by context name, and the verdict."""

    logits: Mapping[str, Logits]
    verdict: Verdict | None = None

    @property
    def known(self) -> Verdict:
        """The verdict, for a stage that acts on one.

        Raises:
            SteeringError: there is none.
        """
        if self.verdict is None:
            raise SteeringError("there is no verdict to act on")
        return self.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on its way through the stages, which replace `z` (V,) one after the other.

    `rows` are the model's logits by context name. `spared` are the tokens that a mask leaves, because a later stage
    raises them. For the trace: the last row that z was contrasted with, z after it, what was added to which token,
    and whether a stage has `forced` its token whatever the logits say.
    """

    number: int
    rows: Mapping[str, Logits]
    z: Logits
    contrasted: Logits
    spared: Ids = field(default_factory=lambda: NO_IDS)
    reference: Logits | None = None
    shifts: Mapping[int, float] = field(default_factory=dict)
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A stage in one reply: it acts on the first `steps` tokens, None for all. This one does nothing."""

    steps: int | None = 0
    answer: str | None = None

    def raised(self, step: int) -> Ids:
        """The tokens that it makes likelier in a step."""
        return NO_IDS

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        """How tokens are chosen, given how they would be; see `Steering.sampling`."""
        return asked

    def fused(self, before: FusedStep, contexts: Sequence[str]) -> FusedStep | None:
        """What a device does of this and of the stages before it in one; None if it cannot. `contexts` are the rows."""
        return None

    def apply(self, step: Step) -> Step:
        """The step with another z."""
        return step


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(ABC):
    """The contexts other than `real`, prompts and noise that a stage needs, and whether it acts on a verdict."""

    contexts: tuple[Context, ...] = ()
    prompts: Mapping[str, PromptEdit] = field(default_factory=dict)
    noise: Noise | None = None
    judged: bool = False

    def informed(self, verdict: Verdict) -> Stage:
        """The same stage where the verdict is known before the prompts are made."""
        return self

    def without_pictures(self) -> Stage | None:
        """The stage where a request shows no picture; None if it has nothing to do then."""
        return self

    @abstractmethod
    def begin(self, first: First) -> Action:
        """What the stage does in a reply.

        Raises:
            SteeringError: the verdict or the logits cannot be acted on.
        """
