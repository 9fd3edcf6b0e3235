"""Files with one JSON value a line: read strictly and in bounded memory, appended a whole line at a time.

Traces, results, verdicts and benchmarks are such files. No object has a key twice, and every number is finite.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safecode_trt.errors import SafeCodeError

__all__ = ["LONGEST_LINE", "JsonLine", "LineWriter", "encode", "parse", "read_lines", "read_values"]

LONGEST_LINE = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLine:
    """A line, counted from 1. With a `problem`, as in "is not valid JSON", its value is None.

    `ended` is whether it has its newline, which the last line lacks where its writer was interrupted. `start` is the
    place of its first byte in the file.
    """

    number: int
    start: int
    text: bytes
    value: Any
    problem: str | None
    ended: bool


def read_lines(path: Path, *, longest: int = LONGEST_LINE) -> Iterator[JsonLine]:
    """The lines that are not blank. One of more than `longest` bytes is a problem, and the last that is read.

    Raises:
        OSError: the file cannot be read.
    """
    number = start = 0
    with path.open("rb") as file:
        while text := file.readline(longest + 1):
            number += 1
            value = problem = None
            ended = text.endswith(b"\n") or len(text) > longest
            if len(text) > longest:
                problem = f"is longer than {longest} bytes"
            elif text.strip():
                try:
                    value = parse(text)
                except ValueError as error:
                    cut = text.startswith(b"{") and not text.rstrip().endswith(b"}")
                    problem = "is cut off" if cut else str(error)
            if problem or text.strip():
                yield JsonLine(
                    number=number, start=start, text=text, value=value, problem=problem, ended=ended
                )
            if len(text) > longest:
                return
            start += len(text)


def read_values(path: Path, failure: type[SafeCodeError]) -> Iterator[tuple[str, Any]]:
    """Where each value stands, as `path:line`, and the value.

    Raises:
        SafeCodeError: of the kind `failure`, the file cannot be read, or a line is not valid.
    """
    try:
        for line in read_lines(path):
            where = f"{path}:{line.number}"
            if line.problem is not None:
                raise failure(line.problem, where=where)
            yield where, line.value
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror or error}") from error


def parse(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is none, as a predicate: "is not valid JSON (...)".
    """
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_number,
            parse_float=_number,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({error})") from error


def encode(value: object) -> bytes:
    """A value as its line, with the newline.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, which UTF-8 cannot hold, becomes JSON's escape for it.
    return (text + "\n").encode("utf-8", "backslashreplace")


class LineWriter:
    """Appends to a file, each line in one call; makes the file if there is none, with the rights of `mode`.

    A file that is `shared` may have several writers: a line that one of them has left unfinished is ended first. One
    that is not is cut to its first `size` bytes, and a line that could not be written is taken off again. With `sync`
    a line is on the disk when `append` returns.

    Raises:
        OSError: the file cannot be opened or written.
    """

    def __init__(
        self, path: Path, *, shared: bool, size: int = 0, sync: bool = False, mode: int = 0o666
    ) -> None:
        self._shared, self._size, self._sync = shared, size, sync
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
        try:
            if not shared:
                os.ftruncate(self._file, size)
            elif stat.S_ISREG((found := os.fstat(self._file)).st_mode) and found.st_size:
                os.lseek(self._file, -1, os.SEEK_END)
                if os.read(self._file, 1) != b"\n":
                    os.write(self._file, b"\n")
        except BaseException:
            self.close()
            raise

    def append(self, value: object) -> None:
        """Adds a value as a line.

        Raises:
            ValueError: a number is not finite.
            OSError: it could not be written.
        """
        line = encode(value)
        rest = memoryview(line)
        try:
            while rest:  # a full disk takes a part, and fails or takes nothing at the next call
                taken = os.write(self._file, rest)
                if not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[taken:]
        except BaseException:
            if not self._shared:
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        if self._sync:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that is finite")
    return value
