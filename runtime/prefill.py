"""Fills the cache with every row's prompt, computing what rows share once.

`plan_prefill` is the schedule, pure arithmetic on token keys; `run_prefill` carries it out. The rows' last tokens
all fall into the last pass, so that the first logits of all contexts come out of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.session import Session

__all__ = ["Fork", "Phase", "PrefillPlan", "RowPrompt", "plan_prefill", "run_prefill"]

# A pass reads all weights once, which costs about as much as computing this many more tokens in a wider pass
# (tools/bench_decode.py prints the break-even).
MIN_SHARED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPrompt:
    """One row's prompt: `keys` (n,) are equal where two rows see the same token or image feature.

    `embeds` is (n, E).
    """

    keys: NDArray[np.int64]
    embeds: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Fork:
    """After a phase, the first `length` positions of row `source` become those of row `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One decoder pass over the first len(counts) rows: row c goes from starts[c] on by counts[c] tokens."""

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    forks: tuple[Fork, ...] = ()

    @property
    def end(self) -> int:
        """The cache positions that the pass touches, padding included."""
        return max(self.starts) + max(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPlan:
    """The passes of a prefill and the cache capacity they need."""

    phases: tuple[Phase, ...]

    @property
    def capacity(self) -> int:
        return max(phase.end for phase in self.phases)


def plan_prefill(
    keys: Sequence[NDArray[np.int64]], done: Sequence[int], *, min_shared: int = MIN_SHARED
) -> PrefillPlan:
    """The passes for rows with these keys, of which the first done[c] positions are in the cache already."""
    filled = list(done)
    parents: dict[int, Fork] = {}
    for row in range(1, len(keys)):
        length, source = max((_forkable(keys[other], keys[row]), -other) for other in range(row))
        if length >= min_shared and length > filled[row]:
            parents[row] = Fork(-source, row, length)
    phases = []
    for stop in sorted({fork.length for fork in parents.values()}):
        counts = _advance([len(row) for row in keys], filled, stop, parents)
        forks = tuple(fork for fork in parents.values() if fork.length == stop)
        phases.append(_phase(filled, counts, forks))
        filled = [start + count for start, count in zip(filled, counts, strict=True)]
        for fork in forks:
            filled[fork.target] = fork.length
    phases.append(_phase(filled, [len(row) - start for row, start in zip(keys, filled, strict=True)], ()))
    return PrefillPlan(phases=tuple(phases))


def _advance(lengths: Sequence[int], filled: Sequence[int], stop: int, forks: dict[int, Fork]) -> list[int]:
    """How far each row goes in the pass before `stop`, always short of its last token.

    Rows that others will be forked from go to `stop`, rows that wait for their fork do not move. Any other row
    goes along if that widens the pass by less than its being behind would lengthen the last one.
    """
    pending = [fork for fork in forks.values() if fork.length >= stop]
    waiting, sources = {fork.target for fork in pending}, {fork.source for fork in pending}
    counts = [
        0 if row in waiting else max(min(stop, n - 1) - filled[row], 0) for row, n in enumerate(lengths)
    ]
    width = max(counts[row] for row in sources)
    last = max(n - stop for row, n in enumerate(lengths) if row in waiting | sources)
    for row in set(range(len(lengths))) - waiting - sources:
        behind = (lengths[row] - filled[row] - last) * len(lengths)
        if row > max(sources) and behind <= width:
            counts[row] = 0
    return counts


def run_prefill(
    plan: PrefillPlan, rows: Sequence[RowPrompt], session: Session, cache: KVCache, builder: FeedBuilder
) -> NDArray[np.float32]:
    """Carries the plan out; logits (C, V) at the end of every row's prompt.

    Raises:
        CapacityError: the plan does not fit into the cache.
    """
    logits = np.empty((0, 0), np.float32)
    for phase in plan.phases:
        counts = np.array(phase.counts, np.int64)
        if counts.max() > 0:
            cache.require(len(counts), int(counts.max()))
            spans = zip(rows, phase.starts, phase.counts, strict=False)
            parts = [row.embeds[start : start + count] for row, start, count in spans]
            logits = session.decode(builder.feeds(parts, counts, cache), cache.memory)
            cache.advance(counts)
        for fork in phase.forks:
            cache.fork(fork.source, fork.target, fork.length)
    return logits


def _phase(filled: Sequence[int], counts: Sequence[int], forks: tuple[Fork, ...]) -> Phase:
    """Rows behind the last one with something to compute are left out of the pass."""
    used = max((row + 1 for row, count in enumerate(counts) if count), default=1)
    return Phase(starts=tuple(filled[:used]), counts=tuple(counts[:used]), forks=forks)


def _forkable(source: NDArray[np.int64], target: NDArray[np.int64]) -> int:
    """Length of the common prefix that leaves both rows a last token for the last pass."""
    length = min(len(source), len(target)) - 1
    different = np.flatnonzero(source[:length] != target[:length])
    return int(different[0]) if len(different) else length
