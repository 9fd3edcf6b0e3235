"""Files of records, the trace and the audit log: one JSON object a line, appended, read strictly."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safecode_trt.errors import ConfigError, TraceError
from safecode_trt.records import from_dict
from safecode_trt.trace.reply_record import SCHEMA_VERSION, ReplyRecord

__all__ = ["BadLine", "RecordFile", "read_records"]

HEAD = b'{"schema_version"'
LONGEST_LINE = 1 << 26


class RecordFile:
    """Appends records to a file that only its owner may read, which it makes if there is none.

    A line is written in one call, so that two processes may share a file. Without `steps` it is an audit log.

    Raises:
        TraceError: the file cannot be written, or holds something else than records.
    """

    def __init__(self, path: Path, *, steps: bool) -> None:
        self._path, self._steps = path, steps
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self._continue()

    def write(self, record: ReplyRecord) -> None:
        """Adds a record.

        Raises:
            TraceError: it could not be written.
        """
        written = record if self._steps else replace(record, steps=())
        text = json.dumps(written.to_dict(), ensure_ascii=False, allow_nan=False)
        self._append((text + "\n").encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _continue(self) -> None:
        """Refuses another kind of file, and ends a line that was cut: the next one is not to be lost with it."""
        head = os.read(self._descriptor, len(HEAD))
        if not head:
            return
        if head != HEAD:
            self.close()
            raise TraceError(
                f"{self._path} exists and is neither trace nor audit log", fix="choose another file"
            )
        os.lseek(self._descriptor, -1, os.SEEK_END)
        if os.read(self._descriptor, 1) != b"\n":
            self._append(b"\n")

    def _append(self, line: bytes) -> None:
        try:
            while line:  # a full disk takes a part, and fails at the next call
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TraceError:
        return TraceError(f"{self._path} cannot be written: {error.strerror}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line, counted from 1, that is no record, and why."""

    number: int
    reason: str


def read_records(path: Path) -> Iterator[ReplyRecord | BadLine]:
    """The records of a file in order, and what stands between them.

    Raises:
        TraceError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise TraceError(f"{path} is no trace: line {number} does not end")
                if line.strip():
                    yield _read(line, number)
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read: {error.strerror}; expected a trace",
            fix=f"safecode-trt run BUNDLE PROMPT --trace {path}",
        ) from error


def _read(line: bytes, number: int) -> ReplyRecord | BadLine:
    try:
        data = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        cut = line.startswith(HEAD) and not line.rstrip().endswith(b"}")
        return BadLine(number=number, reason="is cut off" if cut else "is not valid JSON")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        found = "is no reply" if version is None else f"has schema version {version!r}"
        return BadLine(number=number, reason=f"{found}; expected version {SCHEMA_VERSION} of docs/trace.md")
    try:
        return from_dict(ReplyRecord, data, "reply")
    except ConfigError as error:
        return BadLine(number=number, reason=str(error))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
