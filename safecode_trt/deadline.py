"""When something has to be done: seconds on a clock that nobody sets, and whether its caller still wants it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from safecode_trt.errors import DeadlineError

__all__ = ["Cancelled", "Deadline"]


class Cancelled(Exception):
    """The caller wants no answer any more."""


class Deadline:
    """So many seconds from now, None for no end; `cancelled` says whether the caller has given up."""

    def __init__(
        self, seconds: float | None = None, *, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._seconds, self._start, self.cancelled = seconds, time.perf_counter(), cancelled

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._start

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._seconds is not None and self.elapsed > self._seconds

    @property
    def left(self) -> float:
        """Seconds until it, at least 0; infinite without an end."""
        return math.inf if self._seconds is None else max(self._seconds - self.elapsed, 0.0)

    def check(self, phase: str) -> None:
        """To be called after each phase, and before one that takes long.

        Raises:
            Cancelled: the caller has given up.
            DeadlineError: the time is over.
        """
        if self.cancelled():
            raise Cancelled
        if self.passed:
            raise DeadlineError(f"the deadline of {self} passed during {phase}")

    def __str__(self) -> str:
        return "no end" if self._seconds is None else f"{self._seconds:g} s"
