"""Files of records, the trace and the audit log: one JSON object a line, appended, read strictly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safecode_trt.errors import ConfigError, TraceError
from safecode_trt.json_lines import JsonLine, LineWriter, read_lines
from safecode_trt.records import from_dict
from safecode_trt.trace.reply_record import SCHEMA_VERSION, ReplyRecord

__all__ = ["BadLine", "RecordFile", "read_records"]

HEAD = b'{"schema_version"'


class RecordFile:
    """Appends records to a file that only its owner may read, which it makes if there is none.

    A line is written in one call, so that two processes may share a file. Without `steps` it is an audit log.

    Raises:
        TraceError: the file cannot be written, or holds something else than records.
    """

    def __init__(self, path: Path, *, steps: bool) -> None:
        self._path, self._steps = path, steps
        try:
            if path.is_file():
                self._check()
            self._lines = LineWriter(path, shared=True, mode=0o600)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, record: ReplyRecord) -> None:
        """Adds a record.

        Raises:
            TraceError: it could not be written.
        """
        written = record if self._steps else replace(record, steps=())
        try:
            self._lines.append(written.to_dict())
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def _check(self) -> None:
        with self._path.open("rb") as file:
            head = file.read(len(HEAD))
        if head not in (b"", HEAD):
            raise TraceError(
                f"{self._path} exists and is neither trace nor audit log", fix="choose another file"
            )

    def _unwritable(self, error: OSError) -> TraceError:
        return TraceError(f"{self._path} cannot be written: {error.strerror or error}")


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
        for line in read_lines(path):
            yield _record(line)
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read: {error.strerror}; expected a trace",
            fix=f"safecode-trt run BUNDLE PROMPT --trace {path}",
        ) from error


def _record(line: JsonLine) -> ReplyRecord | BadLine:
    if line.problem is not None:
        return BadLine(number=line.number, reason=line.problem)
    version = line.value.get("schema_version") if isinstance(line.value, dict) else None
    if version != SCHEMA_VERSION:
        found = "is no reply" if version is None else f"has schema version {version!r}"
        reason = f"{found}; expected version {SCHEMA_VERSION} of docs/trace.md"
        return BadLine(number=line.number, reason=reason)
    try:
        return from_dict(ReplyRecord, line.value, "reply")
    except ConfigError as error:
        return BadLine(number=line.number, reason=str(error))
