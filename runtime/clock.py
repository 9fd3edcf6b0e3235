"""The time of one reply: how much has passed, and whether there is any left."""

from __future__ import annotations

import math
from time import perf_counter

from safecode_trt.errors import SteeringError

__all__ = ["Clock", "LateError"]


class LateError(SteeringError):
    """The time limit passed before the reply could be trusted."""


class Clock:
    """Starts when it is made; `limit` is in seconds, None for none."""

    def __init__(self, limit: float | None) -> None:
        self._limit, self._start = limit, perf_counter()

    @property
    def elapsed(self) -> float:
        return perf_counter() - self._start

    @property
    def late(self) -> bool:
        return self._limit is not None and self.elapsed > self._limit

    @property
    def left(self) -> float:
        """Seconds that are left, infinity without a limit."""
        return math.inf if self._limit is None else max(self._limit - self.elapsed, 0.0)

    def check(self, what: str) -> None:
        """To be called behind `what`.

        Raises:
            LateError: there is no time left.
        """
        if self.late:
            raise LateError(f"the time limit of {self._limit:g} s passed during {what}")
