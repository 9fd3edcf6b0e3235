"""results.jsonl: one JSON object per item and mode, appended as soon as it is known.

A line is written in one call and forced to the disk, so that an interruption loses one line at most: a last line that
was cut is reported, left out, and written again by the next run. Anything else that is wrong is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.benchmarks.item import Side
from safecode_trt.records import loads, to_dict

__all__ = ["Result", "ResultLog", "ResultsFile", "Shard", "finished", "merge_results", "read_results"]

SCHEMA_VERSION = 1
ResultKey = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One answer. `key` is the item's; `run` names bundle, mode's settings and sampling in a digest.

    `p_unsafe` and `verdict_unsafe` are the judge row's, None without one. `fallback_reason` says why the reply ended
    in the fail-safe. Prompts and pictures are not repeated: the item's key leads to them.
    """

    key: str
    mode: str
    run: str
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
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsFile:
    """What a file holds; `cut` is a last line that was not written to its end, and `size` the bytes before it."""

    path: Path
    results: tuple[Result, ...]
    cut: str | None
    size: int


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
            raise ConfigError(f"shard must be i/n with 1 <= i <= n, such as 2/4, got {text!r}")
        return cls(index=index, count=count)

    def holds(self, key: str) -> bool:
        """Whether an item belongs to this part."""
        digest = hashlib.sha256(key.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


class ResultLog:
    """Appends to a results file; a cut last line is taken off first. One process writes a file, another one its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.earlier = read_results(path) if path.exists() else _empty(path)
        self._size = self.earlier.size
        self._written = {_key(result) for result in self.earlier.results}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.ftruncate(self._descriptor, self.earlier.size)
        except OSError as error:
            raise EvalError(f"{path} cannot be written: {error.strerror}") from error

    def append(self, result: Result) -> None:
        """Adds a result and waits until the disk has it.

        Raises:
            EvalError: the item has a result in this mode, a number is not finite, or the disk is full.
        """
        if _key(result) in self._written:
            raise EvalError(f"{self.path} has a result of {result.key} in mode {result.mode}; expected one")
        line = _line(result).encode()
        try:
            done = os.write(self._descriptor, line)
            if done != len(line):
                # What is there of the line must not begin the next one.
                os.ftruncate(self._descriptor, self._size)
                raise EvalError(f"{self.path}: {done} of {len(line)} bytes were written; is the disk full?")
            os.fsync(self._descriptor)
        except OSError as error:
            raise EvalError(f"{self.path} cannot be written: {error.strerror}") from error
        self._size += done
        self._written.add(_key(result))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def __enter__(self) -> ResultLog:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def read_results(path: Path) -> ResultsFile:
    """All results of a file.

    Raises:
        EvalError: the file is missing, a line other than a cut last one is malformed, or a result is there twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror}") from error
    whole, newline, tail = data.rpartition(b"\n")
    results = [_parse(line, f"{path}:{n}") for n, line in enumerate(whole.split(b"\n"), start=1) if newline]
    seen: set[ResultKey] = set()
    for number, result in enumerate(results, start=1):
        if _key(result) in seen:
            raise EvalError(f"{path}:{number}: a second result of {result.key} in mode {result.mode}")
        seen.add(_key(result))
    return ResultsFile(
        path=path,
        results=tuple(results),
        cut=tail.decode(errors="replace") if tail else None,
        size=len(data) - len(tail),
    )


def finished(results: Iterable[Result], *, mode: str, run: str) -> frozenset[str]:
    """The keys that need no second answer in a mode.

    Raises:
        EvalError: results of this mode come from a run with other settings.
    """
    done = [result for result in results if result.mode == mode]
    others = sorted({result.run for result in done} - {run})
    if others:
        raise EvalError(
            f"there are results of mode {mode} from another run ({others[0]}, this one is {run}); write to another file"
        )
    return frozenset(result.key for result in done)


def merge_results(parts: Sequence[Path], target: Path) -> tuple[ResultsFile, ...]:
    """Writes the results of several files to one, sorted by key and mode, whole or not at all; returns the parts.

    Raises:
        EvalError: a part cannot be read, two parts have different results of one item and mode, or modes with one
            name come from different runs.
    """
    read = tuple(read_results(path) for path in parts)
    merged: dict[ResultKey, tuple[Result, Path]] = {}
    runs: dict[str, tuple[str, Path]] = {}
    for part in read:
        for result in part.results:
            run, origin = runs.setdefault(result.mode, (result.run, part.path))
            if run != result.run:
                raise EvalError(f"{origin} and {part.path}: mode {result.mode} comes from different runs")
            kept, origin = merged.setdefault(_key(result), (result, part.path))
            if kept != result:
                raise EvalError(
                    f"{origin} and {part.path}: different results of {result.key} in mode {result.mode}"
                )
    _write_whole(target, "".join(_line(result) for _, (result, _) in sorted(merged.items())))
    return read


def _key(result: Result) -> ResultKey:
    return result.key, result.mode


def _empty(path: Path) -> ResultsFile:
    return ResultsFile(path=path, results=(), cut=None, size=0)


def _line(result: Result) -> str:
    try:
        return json.dumps(to_dict(result), allow_nan=False) + "\n"
    except ValueError as error:
        raise EvalError(f"the result of {result.key} has a number that is not finite") from error


def _parse(line: bytes, where: str) -> Result:
    try:
        result = loads(Result, line, where)
    except ConfigError as error:
        raise EvalError(f"{error}; the file was changed, or another program has written to it") from error
    if result.schema_version != SCHEMA_VERSION:
        raise EvalError(f"{where}: schema version {result.schema_version}, expected {SCHEMA_VERSION}")
    numbers = (result.seconds, result.first_token_seconds or 0.0, result.p_unsafe or 0.0)
    if not all(map(math.isfinite, numbers)):
        raise EvalError(f"{where}: a number is not finite")
    return result


def _write_whole(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EvalError(f"{target} cannot be written: {error.strerror}") from error
