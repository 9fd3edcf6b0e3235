"""Plans and policies: which contexts a reply carries, and how their logits become one row per step.

A context is one view of the request (which picture, which prompt); a policy reads logits and never calls the
model. The decode loop knows this file and no particular policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from safecode_trt.config import SamplingParams
from safecode_trt.errors import ConfigError
from safecode_trt.ops.candidate import Candidate
from safecode_trt.ops.fused import FusedStep

__all__ = [
    "Candidate",
    "Combined",
    "Context",
    "DiffusionNoise",
    "Fallback",
    "Lifetime",
    "Noise",
    "Picture",
    "PixelNoise",
    "Plan",
    "Policy",
    "PromptEdit",
    "Steering",
    "StepTrace",
    "Verdict",
]

Logits = NDArray[np.float32]
Picture = Literal["real", "noised", "cached"]
Lifetime = Literal["reply", "steered", "prefill"]
LIFETIMES: tuple[Lifetime, ...] = ("reply", "steered", "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One row of the batch. `lifetime` says until when it is carried; after it the row is dropped."""

    name: str
    picture: Picture = "real"
    prompt: str = "request"
    lifetime: Lifetime = "reply"


REAL = Context(name="real")
JUDGE = "judge"
"""The name of the context, and of its prompt, whose logits are the model's own verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEdit:
    """How a prompt differs from the user's: `template` has {request} where the user's last words go.

    `system` comes in front of the user's own system turn; without `pictures` the conversation shows none.
    """

    template: str = "{request}"
    system: str | None = None
    pictures: bool = True


UNCHANGED = PromptEdit()


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelNoise:
    """Gaussian noise of deviation `sigma` on [0, 1] pixels at the model's resolution (arXiv 2509.19212)."""

    sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionNoise:
    """Step 0 to 999 of a diffusion schedule on the normalised picture (arXiv 2311.16922)."""

    step: int


Noise = PixelNoise | DiffusionNoise


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The contexts of a reply in row order: `real` first, then by falling lifetime.

    `prompts` are the prompts that differ from the request, by name; "request" itself may be one. `noise` is that
    of the `noised` picture.
    """

    contexts: tuple[Context, ...] = (REAL,)
    prompts: Mapping[str, PromptEdit] = field(default_factory=dict)
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if not self.contexts or self.contexts[0] != REAL:
            raise ConfigError("a plan's first context must be the real picture with the user's request")
        order = [LIFETIMES.index(context.lifetime) for context in self.contexts]
        if order != sorted(order) or order.count(0) != 1:
            raise ConfigError("a plan's contexts must be in the order reply (one), steered, prefill")
        if len({context.name for context in self.contexts}) != len(self.contexts):
            raise ConfigError("a plan's contexts must have different names")
        if self.noise is None and any(context.picture == "noised" for context in self.contexts):
            raise ConfigError("a plan with a noised picture must say which noise")
        if not self.edit("request").pictures:
            raise ConfigError("a plan's first context must show the pictures")

    @property
    def judged(self) -> bool:
        """Whether a row is there for the verdict, which may come from elsewhere instead."""
        return any(context.name == JUDGE for context in self.contexts)

    def without_judge(self) -> Plan:
        """This plan where the verdict comes from elsewhere."""
        return replace(self, contexts=tuple(each for each in self.contexts if each.name != JUDGE))

    def edit(self, prompt: str) -> PromptEdit:
        """How the prompt of this name differs from the request."""
        return self.prompts.get(prompt, UNCHANGED)

    def rows(self, lifetime: Lifetime) -> int:
        """How many leading rows live at least this long."""
        longest = LIFETIMES.index(lifetime)
        return sum(LIFETIMES.index(context.lifetime) <= longest for context in self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How unsafe it is to help with the request in this scene, and what the threshold made of it.

    A policy that finds it too uncertain to act on has `abstained`. `source` is the judge's name; `mass`
    is the probability of both verdict tokens together where the bundle's own model judged, and `caption` what a judge
    that reads the scene in words was told.

    Raises:
        ConfigError: P(unsafe) or the threshold is no probability: NaN would be safe to every comparison.
    """

    p_unsafe: float
    threshold: float
    source: str
    abstained: bool = False
    mass: float | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        for name in ("p_unsafe", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of a verdict must be between 0 and 1, got {getattr(self, name)!r}")

    @property
    def unsafe(self) -> bool:
        return self.p_unsafe >= self.threshold

    @property
    def lean(self) -> float:
        """How far to one side the verdict is: -1 for a certain safe, 0 on the threshold, 1 for a certain unsafe.

        Linear on either side of the threshold, so 2 p_unsafe - 1 for one of 0.5.
        """
        if self.unsafe:
            return (self.p_unsafe - self.threshold) / (1 - self.threshold) if self.threshold < 1 else 1.0
        return (self.p_unsafe - self.threshold) / self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """What the policy did in one steered step; candidates as `traced_candidates` has them.

    A `forced` step's token was put there by a stage whatever the logits say.
    """

    step: int
    candidates: tuple[Candidate, ...]
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """One row of logits (V,) to choose the next token from; -inf excludes a token."""

    logits: Logits
    trace: StepTrace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What answers when the verdict or the logits cannot be trusted."""

    kind: Literal["refuse", "plain", "error"] = "refuse"
    text: str = ""


class Steering(Protocol):
    """The steering of one reply: the first `steps` tokens (None: all) go through `combine`, the rest are plain.

    With an `answer` nothing is decoded: the policy has settled what the reply says.
    """

    @property
    def steps(self) -> int | None: ...

    @property
    def verdict(self) -> Verdict | None: ...

    @property
    def answer(self) -> str | None: ...

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        """How tokens are chosen in the steered steps and after them; the latter's length is the reply's."""

    @property
    def changes(self) -> int:
        """The first step from which on every step is steered, or not steered, alike."""

    def fused(self, step: int, sampling: SamplingParams) -> FusedStep | None:
        """The same as `combine` and the choice of a token, for a device to do in one; None if it cannot."""

    def combine(self, step: int, logits: Logits) -> Combined:
        """(C, V) logits of the rows that live through the steered steps, in plan order, to one row.

        Raises:
            SteeringError: the logits are not finite.
        """


class Policy(Protocol):
    """Chooses the contexts of a reply and reads their first logits."""

    @property
    def plan(self) -> Plan: ...

    @property
    def fallback(self) -> Fallback: ...

    def informed(self, verdict: Verdict) -> Policy:
        """The same policy with a verdict from elsewhere: its plan has no judge."""

    def without_pictures(self) -> Policy:
        """The policy for a request that shows no picture: what contrasts pictures is left out."""

    def begin(self, logits: Mapping[str, Logits]) -> Steering:
        """Takes the logits (V,) at the end of every context's prompt, by context name.

        Raises:
            SteeringError: there is no trustworthy verdict.
        """
