"""Frozen dataclasses from JSON and back, where an unknown or missing key is an error.

Knows nothing of what the records mean. Supports the types that our records use: str, int, float, bool,
None, nested dataclasses, tuple[X, ...], Mapping[str, X], Literal and unions with None.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from safecode_trt.errors import ConfigError

__all__ = ["changed", "from_dict", "loads", "overridden", "replaced", "to_dict"]

Record = TypeVar("Record")
TYPES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
"""Types as messages call them."""


def from_dict(record: type[Record], data: object, where: str = "") -> Record:
    """Builds a dataclass from parsed JSON; `where` names the place in error messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type; `field` is its dotted name.
    """
    try:
        return _record(record, data, "")
    except ConfigError as error:
        raise ConfigError.of(error, where=where or record.__name__) from error


def loads(record: type[Record], text: str | bytes, where: str) -> Record:
    """Parses JSON text and builds the dataclass; broken JSON is a ConfigError too."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON ({error})", where=where) from error
    return from_dict(record, data, where)


def changed(record: Record, changes: Sequence[str], where: str) -> Record:
    """The record with some values replaced, each as `key=value` or, inside a record, `outer.key=value`.

    A value is JSON, or else a string; `where` names the place in error messages.

    Raises:
        ConfigError: a change has no `=`, its key is unknown, or the value does not fit.
    """
    data = to_dict(record)
    for change in changes:
        key, found, text = change.partition("=")
        if not found or not key.strip():
            raise ConfigError(f"expected KEY=VALUE, got {change!r}", where=where)
        *outer, last = key.strip().split(".")
        inner = data
        for name in outer:
            inner = inner.get(name)
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"is not a known key: {name!r} has no settings inside it", field=key.strip(), where=where
                )
        try:
            inner[last] = json.loads(text)
        except (ValueError, RecursionError):
            inner[last] = text
    return from_dict(type(record), data, where)


def replaced(record: Record, values: Mapping[str, Any], where: str = "") -> Record:
    """The record with some values replaced; a mapping for a record inside it replaces some of that one's.

    Raises:
        ConfigError: a key is unknown, or a value does not fit.
    """
    return from_dict(type(record), _merged(to_dict(record), values), where)


def overridden(record: Record, path: Path) -> Record:
    """The record with the values that a JSON file gives.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value does not fit.
    """
    where = str(path)
    try:
        given = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON ({error})", where=where) from error
    if not isinstance(given, dict):
        raise ConfigError(f"expected an object, got {type(given).__name__}", where=where)
    return replaced(record, given, where)


def to_dict(record: Any) -> Any:
    """The JSON form of a record: dataclasses become objects, tuples become lists."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {key: to_dict(item) for key, item in record.items()}
    if isinstance(record, tuple | list):
        return [to_dict(item) for item in record]
    return record


def _record(record: type[Record], data: object, path: str) -> Record:
    """The dataclass at a dotted `path`, empty for the outermost."""
    if not isinstance(data, Mapping):
        raise _unfit(path, "an object", type(data).__name__)
    fields = {f.name: f for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise ConfigError(f"is not a known key; known keys: {known}", field=_inside(path, key))
    for name, f in fields.items():
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        if name not in data and not optional:
            raise ConfigError("is missing", field=_inside(path, name))
    hints = get_type_hints(record)
    values = {key: _value(hints[key], item, _inside(path, key)) for key, item in data.items()}
    try:
        return record(**values)
    except ConfigError as error:
        raise ConfigError.of(error, field=_inside(path, error.field) if error.field else path) from error


def _merged(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: (data.get(key), value) for key, value in values.items()}
    nested = {
        key: _merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
        for key, (old, new) in both.items()
    }
    return {**data, **nested}


def _inside(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _unfit(path: str, wanted: str, found: str) -> ConfigError:
    if path:
        return ConfigError(f"must be {wanted}, got {found}", field=path)
    return ConfigError(f"expected {wanted}, got {found}")


def _value(hint: Any, item: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return item
    if origin in (Union, types.UnionType):
        if item is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _value(inner[0] if len(inner) == 1 else _matching(inner, item), item, path)
    if origin is Literal:
        if item not in arguments:
            raise _unfit(path, f"one of {', '.join(map(str, arguments))}", repr(item))
        return item
    if origin is tuple:
        if not isinstance(item, list | tuple):
            raise _unfit(path, "a list", type(item).__name__)
        return tuple(_value(arguments[0], part, f"{path}[{i}]") for i, part in enumerate(item))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(item, Mapping):
            raise _unfit(path, "an object", type(item).__name__)
        return {key: _value(arguments[1], part, _inside(path, key)) for key, part in item.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record(hint, item, path)
    if hint is float and isinstance(item, int) and not isinstance(item, bool):
        try:
            return float(item)
        except OverflowError as error:
            raise _unfit(path, "a number", "an integer that is too large for one") from error
    if not isinstance(item, hint) or (hint in (int, float) and isinstance(item, bool)):
        raise _unfit(path, TYPES.get(hint, hint.__name__), repr(item))
    return item


def _matching(hints: list[Any], item: Any) -> Any:
    """The member of a union of plain types that the item is, or the first, whose error then tells."""
    return next((hint for hint in hints if type(item) is hint), hints[0])
