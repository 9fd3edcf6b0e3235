"""Fills the cache with every row's prompt, computing what rows share once.

`plan_prefill` is the schedule, pure arithmetic on token keys; `run_prefill` carries it out. A pass covers
neighbouring rows; where their lengths differ much, several passes beat the padding of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rows import RowPrompt
from safecode_trt.runtime.session import Session

__all__ = ["Fork", "Pass", "Phase", "PrefillPlan", "plan_prefill", "run_prefill", "shared_prefix"]

# What a pass costs by itself, in tokens: it reads all weights once (tools/bench_decode.py prints the break-even).
PASS_COST = 4


@dataclass(frozen=True, slots=True)
class Fork:
    """After a phase, the first `length` positions of row `source` become those of row `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One decoder pass: row first_row + c goes from starts[c] on by counts[c] tokens."""

    first_row: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def end(self) -> int:
        """The cache positions that the pass touches, padding included."""
        return max(self.starts) + max(self.counts)

    @property
    def cost(self) -> int:
        """In tokens, padding included."""
        return PASS_COST + len(self.counts) * max(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Passes over different rows, and the forks that they make possible."""

    passes: tuple[Pass, ...]
    forks: tuple[Fork, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPlan:
    """The phases of a prefill; every row's last token is in the last one."""

    phases: tuple[Phase, ...]

    @property
    def passes(self) -> tuple[Pass, ...]:
        return tuple(step for phase in self.phases for step in phase.passes)

    @property
    def capacity(self) -> int:
        """The cache positions that it needs."""
        return max(step.end for step in self.passes)


def plan_prefill(
    keys: Sequence[NDArray[np.int64]], done: Sequence[int], *, min_shared: int = 2 * PASS_COST
) -> PrefillPlan:
    """The passes for rows with these keys, of which the first done[c] positions are in the cache already.

    A prefix of at least `min_shared` positions that a row shares with an earlier one is forked from it.
    """
    filled = list(done)
    forks: dict[int, Fork] = {}
    for row in range(1, len(keys)):
        length, source = max((shared_prefix(keys[other], keys[row]), -other) for other in range(row))
        if length >= min_shared and length > filled[row]:
            forks[row] = Fork(-source, row, length)
    phases = []
    for stop in sorted({fork.length for fork in forks.values()}):
        # Only rows that others are forked from have to be this far; the others come in the last phase.
        pending = [fork for fork in forks.values() if fork.length >= stop]
        moving = {fork.source for fork in pending} - {fork.target for fork in pending}
        counts = [max(stop - start, 0) if row in moving else 0 for row, start in enumerate(filled)]
        due = tuple(fork for fork in pending if fork.length == stop)
        phases.append(Phase(passes=_passes(filled, counts), forks=due))
        filled = [start + count for start, count in zip(filled, counts, strict=True)]
        for fork in due:
            filled[fork.target] = fork.length
    rest = [len(row) - start for row, start in zip(keys, filled, strict=True)]
    phases.append(Phase(passes=_passes(filled, rest)))
    return PrefillPlan(phases=tuple(phases))


def run_prefill(
    plan: PrefillPlan, rows: Sequence[RowPrompt], session: Session, cache: KVCache, builder: FeedBuilder
) -> NDArray[np.float32]:
    """Carries the plan out; logits (C, V) at the end of every row's prompt.

    Raises:
        CapacityError: the plan needs more positions than a row may hold.
    """
    last: list[NDArray[np.float32]] = []
    for phase in plan.phases:
        last = []
        for step in phase.passes:
            first, counts = step.first_row, np.array(step.counts, np.int64)
            cache.require(int(counts.max()), first_row=first, rows=len(counts))
            feeds = builder.feeds(rows[first : first + len(counts)], counts, cache, first_row=first)
            last.append(session.decode(feeds, cache.memory, first_row=first).logits[:, 0].copy())
            cache.advance(counts, first_row=first)
        for fork in phase.forks:
            cache.fork(fork.source, fork.target, fork.length)
    return np.concatenate(last)


def shared_prefix(source: NDArray[np.int64], target: NDArray[np.int64]) -> int:
    """Length of the common prefix of two rows' keys that leaves both a last token for the last pass."""
    length = min(len(source), len(target)) - 1
    different = np.flatnonzero(source[:length] != target[:length])
    return int(different[0]) if len(different) else length


def _passes(filled: Sequence[int], counts: Sequence[int]) -> tuple[Pass, ...]:
    """The cheapest way to cut the rows into runs of neighbours, one pass each; rows without work are left out."""
    rows = len(counts)
    cuts = (inner for n in range(rows) for inner in combinations(range(1, rows), n))
    ways = [
        [
            Pass(first_row=a, starts=tuple(filled[a:b]), counts=tuple(counts[a:b]))
            for a, b in pairwise((0, *cut, rows))
            if max(counts[a:b]) > 0
        ]
        for cut in cuts
    ]
    return tuple(min(ways, key=lambda way: sum(step.cost for step in way)))
