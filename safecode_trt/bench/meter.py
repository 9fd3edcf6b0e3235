"""A session that notes when each decoder pass began and ended, and how long its execution took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.runtime import Reply, Session
from safecode_trt.runtime.backends.ort import OrtSession
from safecode_trt.runtime.choose import Chooser, Chosen, HostChooser
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, DecoderOutputs

__all__ = ["PARTS", "Call", "MeteredSession", "reply_parts"]

PARTS = ("vision", "prefill", "steered steps", "plain steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One decoder pass: its rows, its start and end, and the seconds inside the executing library."""

    rows: int
    start: float
    end: float
    inside: float


class MeteredSession:
    """Implements `Session` by another session. Backends without a clock of their own count as all inside."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.name = inner.name
        self.calls: list[Call] = []

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
        return self._inner.encode(inputs)

    def allocate(self, rows: int) -> CacheMemory:
        return self._inner.allocate(rows)

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        with self._noted(feeds):
            return self._inner.decode(feeds, memory, first_row=first_row, wanted=wanted)

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> Any:
        with self._noted(feeds):
            return self._inner.step(feeds, memory)

    def chooser(self, host: HostChooser) -> Chooser:
        inner = self._inner.chooser(host)
        return inner if inner is host else _TimedChooser(inner, self.calls)

    @contextmanager
    def _noted(self, feeds: DecoderFeeds) -> Iterator[None]:
        inner = self._inner
        before = inner.decoder_seconds if isinstance(inner, OrtSession) else 0.0
        start = perf_counter()
        yield
        end = perf_counter()
        inside = inner.decoder_seconds - before if isinstance(inner, OrtSession) else end - start
        self.calls.append(Call(rows=len(feeds.write_indices), start=start, end=end, inside=inside))

    def close(self) -> None:
        self._inner.close()


class _TimedChooser:
    """A chooser on a device: waiting for the logits is part of their pass, the last of `calls`."""

    def __init__(self, inner: Chooser, calls: list[Call]) -> None:
        self._inner, self._calls = inner, calls

    def choose(self, step: int, logits: Any, history: Sequence[int]) -> Chosen:
        start = perf_counter()
        chosen = self._inner.choose(step, logits, history)
        end, call = perf_counter(), self._calls[-1]
        self._calls[-1] = replace(call, end=end, inside=call.inside + end - start)
        return chosen


def reply_parts(reply: Reply, calls: Sequence[Call]) -> dict[str, float]:
    """Where the seconds of a reply went, and its typical step with one row: `calls` are its decoder passes.

    A step lasts from the end of the pass before it to the end of its own, so that choosing the token and
    turning it into text are in it. `outside` is what a step spends beyond the executing library, `binding` the
    part of that within the session.
    """
    times = reply.timings
    first = len(calls) - (len(reply.token_ids) - 1)
    steps = [
        (call, call.end - before.end) for before, call in zip(calls[first - 1 :], calls[first:], strict=False)
    ]
    parts = {
        "vision": times.vision_s,
        "prefill": times.prefill_s,
        "steered steps": sum(seconds for call, seconds in steps if call.rows > 1),
        "plain steps": sum(seconds for call, seconds in steps if call.rows == 1),
    }
    parts["rest"] = times.total_s - sum(parts[name] for name in PARTS)
    parts["first token"] = times.first_token_s
    for name, chosen in (
        ("step", [step for step in steps if step[0].rows == 1]),
        ("steered step", [step for step in steps if step[0].rows > 1]),
    ):
        if chosen:
            parts[name] = median(seconds for _, seconds in chosen)
            parts[f"{name} outside"] = median(seconds - call.inside for call, seconds in chosen)
            parts[f"{name} binding"] = median(call.end - call.start - call.inside for call, _ in chosen)
    return parts
