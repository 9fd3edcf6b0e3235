"""Plans and policies: which contexts a reply carries, and how their logits become one row per step.

A context is one view of the request (which picture, which prompt); a policy reads logits and never calls the
model. The decode loop knows this file and no particular policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import ConfigError
from safecode_trt.ops.candidate import Candidate

__all__ = [
    "Candidate",
    "Combined",
    "Context",
    "Fallback",
    "Lifetime",
    "Picture",
    "Plan",
    "Policy",
    "Prompt",
    "Steering",
    "StepTrace",
    "Verdict",
]

Logits = NDArray[np.float32]
Picture = Literal["real", "noised", "cached"]
Prompt = Literal["request", "judge"]
Lifetime = Literal["reply", "steered", "prefill"]
LIFETIMES: tuple[Lifetime, ...] = ("reply", "steered", "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One row of the batch. `lifetime` says until when it is carried; after it the row is dropped."""

    name: str
    picture: Picture = "real"
    prompt: Prompt = "request"
    lifetime: Lifetime = "reply"


REAL = Context(name="real")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The contexts of a reply in row order: `real` first, then by falling lifetime.

    `sigma` is the noise of a `noised` picture on [0, 1] pixels; `judge_template` holds {request}.
    """

    contexts: tuple[Context, ...] = (REAL,)
    sigma: float = 0.0
    judge_template: str = ""

    def __post_init__(self) -> None:
        if not self.contexts or self.contexts[0] != REAL:
            raise ConfigError("a plan's first context must be the real picture with the user's request")
        order = [LIFETIMES.index(context.lifetime) for context in self.contexts]
        if order != sorted(order) or order.count(0) != 1:
            raise ConfigError("a plan's contexts must be in the order reply (one), steered, prefill")
        if len({context.name for context in self.contexts}) != len(self.contexts):
            raise ConfigError("a plan's contexts must have different names")

    def rows(self, lifetime: Lifetime) -> int:
        """How many leading rows live at least this long."""
        longest = LIFETIMES.index(lifetime)
        return sum(LIFETIMES.index(context.lifetime) <= longest for context in self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How unsafe it is to help with the request in this scene, and what the threshold made of it."""

    p_unsafe: float
    threshold: float
    source: str

    @property
    def unsafe(self) -> bool:
        return self.p_unsafe >= self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """What the policy did in one steered step; candidates by falling final logit."""

    step: int
    candidates: tuple[Candidate, ...]


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
    """The steering of one reply: the first `steps` tokens go through `combine`, the rest are plain."""

    @property
    def steps(self) -> int: ...

    @property
    def verdict(self) -> Verdict | None: ...

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

    def begin(self, logits: Mapping[str, Logits]) -> Steering:
        """Takes the logits (V,) at the end of every context's prompt, by context name.

        Raises:
            SteeringError: there is no trustworthy verdict.
        """
