"""Files of JSON lines that survive interruptions: a line is one record, appended as soon as it is known.

A line is written in one call and forced to the disk, so that an interruption loses one line at most: a last line that
was cut is reported, left out, and written again by the next run. Anything else that is wrong is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from safecode_trt import atomic, json_lines
from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.json_lines import JsonLine, LineWriter
from safecode_trt.records import from_dict, to_dict

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
        self._written = {line.identity for line in self.earlier.lines}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = LineWriter(path, shared=False, size=self.earlier.size, sync=True)
        except OSError as error:
            raise EvalError(f"{path} cannot be written: {error.strerror or error}") from error

    def append(self, record: L) -> None:
        """Adds a record and waits until the disk has it.

        Raises:
            EvalError: the record is there already, a number is not finite, or the disk is full.
        """
        if record.identity in self._written:
            raise EvalError(f"{self.path} has a {record.named} already; expected one")
        try:
            self._lines.append(to_dict(record))
        except ValueError as error:
            raise _not_finite(record) from error
        except OSError as error:
            raise EvalError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._written.add(record.identity)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def __enter__(self) -> LineLog[L]:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def read_log(path: Path, record: type[L]) -> LinesFile[L]:
    """All records of a file.

    Raises:
        EvalError: the file is missing, a line other than a cut last one is malformed, or a record is there twice.
    """
    lines: list[L] = []
    seen: set[tuple[str, ...]] = set()
    cut: JsonLine | None = None
    size = 0
    try:
        for line in json_lines.read_lines(path):
            if not line.ended:
                cut = line
                break
            where = f"{path}:{line.number}"
            found = _record(line, record, where)
            if found.identity in seen:
                raise EvalError(f"a second {found.named}; expected one", where=where)
            seen.add(found.identity)
            lines.append(found)
            size = line.start + len(line.text)
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror or error}") from error
    return LinesFile(
        path=path,
        lines=tuple(lines),
        cut=cut.text.decode(errors="replace") if cut else None,
        size=cut.start if cut else size,
    )


def line_of(record: Line) -> str:
    """A record as its line.

    Raises:
        EvalError: a number is not finite.
    """
    try:
        return json_lines.encode(to_dict(record)).decode()
    except ValueError as error:
        raise _not_finite(record) from error


def write_whole(target: Path, text: str) -> None:
    """Writes a file whole or not at all, and the folders that it is in.

    Raises:
        EvalError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(target, text)
    except OSError as error:
        raise EvalError(f"{target} cannot be written: {error.strerror or error}") from error


def _record(line: JsonLine, record: type[L], where: str) -> L:
    version = line.value.get("schema_version") if isinstance(line.value, dict) else None
    if version not in (None, record.VERSION):
        raise EvalError(
            f"schema version {version}, expected {record.VERSION}; another version of safecode-trt wrote it",
            where=where,
            fix="write to another --output",
        )
    try:
        if line.problem is not None:
            raise ConfigError(line.problem, where=where)
        return from_dict(record, line.value, where)
    except ConfigError as error:
        raise EvalError(
            f"{error.message}; the file was changed, or another program has written to it",
            field=error.field,
            where=where,
        ) from error


def _not_finite(record: Line) -> EvalError:
    return EvalError(f"the {record.named} has a number that is not finite")
