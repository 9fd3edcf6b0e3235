"""Files of JSON lines that survive interruptions: a line is one record, appended as soon as it is known.

A line is written in one call and forced to the disk, so that an interruption loses one line at most: a last line that
was cut is reported, left out, and written again by the next run. Anything else that is wrong is an error.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.records import loads, to_dict

__all__ = ["Line", "LineLog", "LinesFile", "line_of", "read_log", "write_whole"]


class Line(Protocol):
    """A record that fits on a line. `identity` is there once in a file; `named` is how messages call it."""

    VERSION: ClassVar[int]

    @property
    def schema_version(self) -> int: ...

    @property
    def identity(self) -> tuple[str, ...]: ...

    @property
    def named(self) -> str: ...


L = TypeVar("L", bound=Line)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesFile(Generic[L]):
    """What a file holds; `cut` is a last line that was not written to its end, and `size` the bytes before it."""

    path: Path
    lines: tuple[L, ...]
    cut: str | None
    size: int


class LineLog(Generic[L]):
    """Appends to a file; a cut last line is taken off first. One process writes a file, another one its own."""

    def __init__(self, path: Path, record: type[L]) -> None:
        self.path = path
        self.earlier: LinesFile[L] = (
            read_log(path, record) if path.exists() else LinesFile(path=path, lines=(), cut=None, size=0)
        )
        self._size = self.earlier.size
        self._written = {line.identity for line in self.earlier.lines}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.ftruncate(self._descriptor, self.earlier.size)
        except OSError as error:
            raise EvalError(f"{path} cannot be written: {error.strerror}") from error

    def append(self, record: L) -> None:
        """Adds a record and waits until the disk has it.

        Raises:
            EvalError: the record is there already, a number is not finite, or the disk is full.
        """
        if record.identity in self._written:
            raise EvalError(f"{self.path} has a {record.named} already; expected one")
        line = line_of(record).encode()
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
        self._written.add(record.identity)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def __enter__(self) -> LineLog[L]:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def read_log(path: Path, record: type[L]) -> LinesFile[L]:
    """All records of a file.

    Raises:
        EvalError: the file is missing, a line other than a cut last one is malformed, or a record is there twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror}") from error
    whole, newline, tail = data.rpartition(b"\n")
    numbered = enumerate(whole.split(b"\n"), start=1)
    lines = [_parse(line, record, f"{path}:{number}") for number, line in numbered if newline]
    seen: set[tuple[str, ...]] = set()
    for number, found in enumerate(lines, start=1):
        if found.identity in seen:
            raise EvalError(f"{path}:{number}: a second {found.named}")
        seen.add(found.identity)
    return LinesFile(
        path=path,
        lines=tuple(lines),
        cut=tail.decode(errors="replace") if tail else None,
        size=len(data) - len(tail),
    )


def line_of(record: Line) -> str:
    """A record as its line.

    Raises:
        EvalError: a number is not finite.
    """
    try:
        return json.dumps(to_dict(record), allow_nan=False) + "\n"
    except ValueError as error:
        raise EvalError(f"the {record.named} has a number that is not finite") from error


def write_whole(target: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        EvalError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp's files are their owner's alone
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EvalError(f"{target} cannot be written: {error.strerror}") from error


def _parse(line: bytes, record: type[L], where: str) -> L:
    if (version := _version(line)) not in (None, record.VERSION):
        raise EvalError(
            f"{where}: schema version {version}, expected {record.VERSION}; another version of safecode-trt wrote it, "
            "so write to another folder"
        )
    try:
        found = loads(record, line, where)
    except ConfigError as error:
        raise EvalError(f"{error}; the file was changed, or another program has written to it") from error
    try:
        line_of(found)
    except EvalError as error:
        raise EvalError(f"{where}: a number is not finite") from error
    return found


def _version(line: bytes) -> object:
    """The schema version that a line names, None if it names none."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data.get("schema_version") if isinstance(data, dict) else None
