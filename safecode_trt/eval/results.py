"""results.jsonl: one JSON object per item and mode, appended as soon as it is known; shards, and their union."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.benchmarks.item import Side
from safecode_trt.eval.line_log import LineLog, LinesFile, line_of, read_log, write_whole

__all__ = ["FAILED", "Result", "ResultLog", "Shard", "finished", "merge_results", "read_results"]

FAILED = "failed"
"""The finish reason of an item that could not be asked; `failure` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One answer. `key` is the item's; `run` names bundle, mode's settings and sampling in a digest.

    `backend` has decoded it. `asked` is a digest of what the item asked: its words and its picture's file.
    `p_unsafe` and `verdict_unsafe` are the judge's, None without one. `fallback_reason` says why the reply ended in
    the fail-safe, `failure` why there is no answer at all. Prompts and pictures are not repeated: the item's key leads
    to them. Seconds are a reply's own, from the opened picture to the last token.
    """

    VERSION: ClassVar[int] = 3

    key: str
    mode: str
    run: str
    backend: str
    asked: str
    side: Side
    category: str
    answer: str
    finish_reason: str
    tokens: int
    seconds: float
    first_token_seconds: float | None = None
    p_unsafe: float | None = None
    verdict_unsafe: bool | None = None
    fallback_reason: str | None = None
    failure: str | None = None
    schema_version: int = VERSION

    @property
    def identity(self) -> tuple[str, ...]:
        """What is there once in a file: the item and the mode."""
        return self.key, self.mode

    @property
    def named(self) -> str:
        """How messages call it."""
        return f"result of {self.key} in mode {self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part `index` of `count`, counted from 1. Which part an item belongs to depends on its key and `count` alone."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that is written i/n.

        Raises:
            ConfigError: it is not two whole numbers with 1 <= i <= n.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        index, count = (int(number) for number in match.groups()) if match else (0, 0)
        if not 1 <= index <= count:
            raise ConfigError(f"must be i/n with 1 <= i <= n, such as 2/4, got {text!r}", field="shard")
        return cls(index=index, count=count)

    def holds(self, key: str) -> bool:
        """Whether an item belongs to this part."""
        digest = hashlib.sha256(key.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


class ResultLog(LineLog[Result]):
    """Appends to a results file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Result)


def read_results(path: Path) -> LinesFile[Result]:
    """All results of a file; as `read_log`."""
    return read_log(path, Result)


def finished(results: Iterable[Result], *, mode: str, run: str) -> frozenset[str]:
    """The keys that need no second answer in a mode.

    Raises:
        EvalError: results of this mode come from a run with other settings.
    """
    done = [result for result in results if result.mode == mode]
    others = sorted({result.run for result in done} - {run})
    if others:
        raise EvalError(
            f"there are results of mode {mode} from another run ({others[0]}, this one is {run})",
            fix="write to another --output",
        )
    return frozenset(result.key for result in done)


def merge_results(parts: Sequence[Path], target: Path) -> tuple[LinesFile[Result], ...]:
    """Writes the results of several files to one, sorted by key and mode, whole or not at all; returns the parts.

    Raises:
        EvalError: a part cannot be read, two parts have different results of one item and mode, or modes with one
            name come from different runs or backends.
    """
    read = tuple(read_results(path) for path in parts)
    merged: dict[tuple[str, ...], tuple[Result, Path]] = {}
    runs: dict[str, tuple[Result, Path]] = {}
    for part in read:
        for result in part.lines:
            first, origin = runs.setdefault(result.mode, (result, part.path))
            if first.run != result.run:
                raise EvalError(f"{origin} and {part.path}: mode {result.mode} comes from different runs")
            if first.backend != result.backend:
                raise EvalError(
                    f"{origin} and {part.path}: mode {result.mode} was decoded by different backends, "
                    f"{first.backend} and {result.backend}"
                )
            kept, origin = merged.setdefault(result.identity, (result, part.path))
            if kept != result:
                raise EvalError(
                    f"{origin} and {part.path}: different results of {result.key} in mode {result.mode}"
                )
    write_whole(target, "".join(line_of(result) for _, (result, _) in sorted(merged.items())))
    return read
