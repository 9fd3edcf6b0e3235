"""Chooses the tokens of one reply: the policy combines the rows of a step, and a sampler takes a token.

Bound once a reply; per token it combines, then samples. Knows no backend: a session that can choose where its logits
are wraps this chooser in its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from safecode_trt.ops.sample import Sampler
from safecode_trt.policy.base import Steering, StepTrace

__all__ = ["Chooser", "Chosen", "HostChooser"]

Chosen = tuple[int, StepTrace | None]
"""A token, and what the policy did in a steered step."""


class Chooser(Protocol):
    """Chooses each token of a reply from what its session's `step` returned."""

    def choose(self, step: int, logits: Any, history: Sequence[int]) -> Chosen:
        """The token of a step; `history` is every token id before it, the prompt's included.

        Raises:
            SteeringError: the logits are not finite, or leave no token.
        """


class HostChooser:
    """Chooses from logits (C, V) in the host's memory.

    `samplers` are for the steered steps and for the rest; the first `rows` rows are those of the steered steps.
    """

    def __init__(self, steering: Steering, samplers: tuple[Sampler, Sampler], *, rows: int) -> None:
        self.steering, self.rows = steering, rows
        self._samplers = samplers

    def steered(self, step: int) -> bool:
        """Whether the policy acts on this step."""
        return self.steering.steps is None or step < self.steering.steps

    def sampler(self, step: int) -> Sampler:
        """The sampler of a step."""
        return self._samplers[0] if self.steered(step) else self._samplers[1]

    def choose(
        self, step: int, logits: NDArray[np.float32], history: Sequence[int], uniform: float | None = None
    ) -> Chosen:
        """See `Chooser.choose`; `uniform` is the sampler's number for the token where it was drawn already."""
        sampler = self.sampler(step)
        if not self.steered(step):
            return sampler(logits[0], history, uniform), None
        combined = self.steering.combine(step, logits[: self.rows])
        return sampler(combined.logits, history, uniform), combined.trace
