"""Times several cases against each other: in rounds, in alternating order, compared within each round.

A machine that grows slower or busier meanwhile does so for all cases of a round, and their ratio stands. Knows
nothing of what a case does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from safecode_trt.progress import Progress, no_progress

__all__ = ["Case", "Rounds", "Spread", "interleaved", "lasting"]

Parts = Mapping[str, float]
LONG = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """Something to time. A call does it `count` times, and may return quantities to keep with the time."""

    run: Callable[[], Parts | None]
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some values, and between which they lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: tuple[float, ...]) -> Spread:
        return cls(median=median(values), low=min(values), high=max(values))

    def scaled(self, factor: float) -> Spread:
        """The same values in another unit."""
        return Spread(median=self.median * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of every case by round; what a case returned is under `case/part`."""

    seconds: Mapping[str, tuple[float, ...]]

    def spread(self, name: str) -> Spread:
        """The seconds of a case, or one of its parts, over the rounds."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """How many times `base` a case takes: within every round, then over the rounds."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return Spread.of(tuple(value / other for value, other in pairs))


def lasting(action: Callable[[], object], *, clock: Callable[[], float] = perf_counter) -> Case:
    """The action, as often as takes about LONG seconds: what is over in a moment is measured badly alone."""
    action()
    start = clock()
    action()
    count = max(int(LONG / max(clock() - start, 1e-6)), 1)

    def run() -> None:
        for _ in range(count):
            action()

    return Case(run, count)


def interleaved(
    cases: Mapping[str, Case],
    repeats: int,
    *,
    warmups: int = 1,
    clock: Callable[[], float] = perf_counter,
    step: str = "measuring",
    progress: Progress = no_progress,
) -> Rounds:
    """Runs every case once per round; every other round goes backwards. Warm-up rounds are not counted.

    `progress` is told of the rounds as `step`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    total = warmups + repeats
    for index in range(total):
        for name in list(cases) if index % 2 == 0 else reversed(list(cases)):
            start = clock()
            parts = cases[name].run()
            elapsed = (clock() - start) / cases[name].count
            if index >= warmups:
                seconds[name].append(elapsed)
                for part, value in (parts or {}).items():
                    seconds.setdefault(f"{name}/{part}", []).append(value)
        progress(step, index + 1, total)
    return Rounds({name: tuple(values) for name, values in seconds.items()})
