"""Files of benchmarks, read with suspicion: whatever is not as expected is one line that names the place."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from safecode_trt import json_lines
from safecode_trt.errors import EvalError

__all__ = [
    "Record",
    "first_file",
    "first_folder",
    "picture_path",
    "read_json",
    "read_lines",
    "read_rows",
    "records",
]


class Record:
    """A JSON object or a row of a table; `where` names it in messages."""

    __slots__ = ("data", "where")

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise EvalError(f"{where}: expected an object, got {_say(data)}")
        self.data: dict[str, Any] = data
        self.where = where

    def text(self, key: str) -> str:
        """A text that is not blank."""
        value = self._value(key)
        if not isinstance(value, str) or not value.strip():
            raise EvalError(f"{self.where}: expected text as {key!r}, got {_say(value)}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of one or more texts."""
        values = self._value(key)
        if not isinstance(values, list) or not values:
            raise EvalError(f"{self.where}: expected a list of texts as {key!r}, got {_say(values)}")
        return [Record({key: value}, f"{self.where}[{n}]").text(key) for n, value in enumerate(values)]

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._value(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise EvalError(f"{self.where}: expected a number as {key!r}, got {_say(value)}")

    def integer(self, key: str) -> int:
        """A whole number, also one that is written as text, as in a table."""
        value = self._value(key)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise EvalError(f"{self.where}: expected a whole number as {key!r}, got {_say(value)}")

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise EvalError(f"{self.where}: expected true or false as {key!r}, got {_say(value)}")
        return value

    def record(self, key: str) -> Record:
        """An object inside this one."""
        return Record(self._value(key), f"{self.where}.{key}")

    def records(self, key: str) -> list[Record]:
        """A list of objects, which may be empty."""
        return records(self._value(key), f"{self.where}.{key}")

    def members(self) -> Iterator[tuple[str, Record]]:
        """Every member as an object of its own."""
        for key, value in self.data.items():
            yield key, Record(value, f"{self.where}[{key}]")

    def _value(self, key: str) -> Any:
        if key not in self.data:
            raise EvalError(
                f"{self.where}: {key!r} is missing; has {', '.join(map(repr, self.data)) or 'nothing'}"
            )
        return self.data[key]


def records(data: object, where: str) -> list[Record]:
    """A list of objects."""
    if not isinstance(data, list):
        raise EvalError(f"{where}: expected a list, got {_say(data)}")
    return [Record(entry, f"{where}[{number}]") for number, entry in enumerate(data)]


def read_json(path: Path) -> Any:
    """The value in a JSON file, in which no object has a key twice."""
    try:
        return json_lines.parse(_read(path).encode())
    except ValueError as error:
        raise EvalError(f"{path} {error}") from error


def read_lines(path: Path) -> list[Record]:
    """The objects of a file with one JSON object a line; blank lines do not count."""
    return [Record(value, where) for where, value in json_lines.read_values(path, EvalError)]


def read_rows(path: Path, columns: Sequence[str]) -> list[Record]:
    """The rows of a table with a header that has these columns."""
    table = csv.DictReader(io.StringIO(_read(path).removeprefix("\ufeff"), newline=""), strict=True)
    rows: list[Record] = []
    try:
        absent = [name for name in columns if name not in (table.fieldnames or ())]
        if absent:
            raise EvalError(f"{path}: the header has no column {absent[0]!r}; expected {', '.join(columns)}")
        for row in table:
            where = f"{path}:{table.line_num}"
            if None in row or None in row.values():
                raise EvalError(f"{where}: expected {len(table.fieldnames or ())} cells in every row")
            rows.append(Record(row, where))
    except csv.Error as error:
        raise EvalError(f"{path}:{table.line_num}: not a table of cells ({error})") from error
    return rows


def first_file(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of these files that is there.

    Raises:
        EvalError: none is; the message says what was looked for.
    """
    return _first([folder / name for name in names], Path.is_file, folder, names, what)


def first_folder(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of these folders that is there; as `first_file`."""
    return _first([folder / name for name in names], Path.is_dir, folder, names, what)


def picture_path(folder: Path, name: str, where: str) -> Path:
    """The path of a picture that a record names; it must stay inside the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise EvalError(f"{where}: the picture {name!r} leads out of {folder}; expected a path inside it")
    return folder.joinpath(*parts.parts)


def _first(paths: list[Path], there: Any, folder: Path, names: Sequence[str], what: str) -> Path:
    for path in paths:
        if there(path):
            return path
    raise EvalError(f"{folder} has no {' and no '.join(names)}; expected {what}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EvalError(f"{path} is missing; complete the benchmark's folder") from error
    except UnicodeDecodeError as error:
        raise EvalError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror}") from error


def _say(value: object) -> str:
    """A value as a message shows it: short, and never a whole record."""
    shown = type(value).__name__ if isinstance(value, dict | list) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
