"""Records from JSON and back: nothing unknown, nothing missing, nothing of the wrong type."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.config import SafeCodeConfig, SamplingParams
from safecode_trt.errors import ConfigError
from safecode_trt.records import from_dict, loads, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["small", "large"]
    inner: Inner
    many: tuple[Inner, ...] = ()
    table: Mapping[str, Inner]
    maybe: str | None = None
    flag: bool = False


GOOD: dict[str, Any] = {"name": "a", "kind": "small", "inner": {"count": 1}, "table": {"x": {"count": 2}}}

inners = st.builds(Inner, count=st.integers(), share=st.floats(allow_nan=False))
outers = st.builds(
    Outer,
    name=st.text(),
    kind=st.sampled_from(["small", "large"]),
    inner=inners,
    many=st.lists(inners).map(tuple),
    table=st.dictionaries(st.text(), inners),
    maybe=st.none() | st.text(),
    flag=st.booleans(),
)


@given(outers)
def test_round_trip(record: Outer) -> None:
    assert loads(Outer, json.dumps(to_dict(record)), "test") == record


def test_whole_numbers_are_floats_too() -> None:
    share = from_dict(Inner, {"count": 1, "share": 1}).share
    assert share == 1.0 and isinstance(share, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"Outer: extra is not a known key; known keys: flag, inner, kind"),
        ({"name": None}, "Outer: name must be a string, got None"),
        ({"name": 3}, "Outer: name must be a string, got 3"),
        ({"kind": "medium"}, "Outer: kind must be one of small, large, got 'medium'"),
        ({"kind": ["small"]}, "Outer: kind must be one of"),
        ({"inner": []}, "Outer: inner must be an object, got list"),
        ({"inner": {}}, "Outer: inner.count is missing"),
        ({"inner": {"count": True}}, "Outer: inner.count must be an integer, got True"),
        ({"inner": {"count": 1.0}}, "Outer: inner.count must be an integer, got 1.0"),
        ({"inner": {"count": 1, "share": "x"}}, "Outer: inner.share must be a number, got 'x'"),
        ({"many": {"count": 1}}, "Outer: many must be a list, got dict"),
        ({"many": [{"count": 1}, {}]}, r"Outer: many\[1\].count is missing"),
        ({"table": []}, "Outer: table must be an object, got list"),
        ({"table": {"x": {"count": 1, "y": 2}}}, "Outer: table.x.y is not a known key"),
        ({"maybe": 3}, "Outer: maybe must be a string, got 3"),
        ({"flag": 1}, "Outer: flag must be true or false, got 1"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, {**GOOD, **change})


@pytest.mark.parametrize("key", ["name", "kind", "inner", "table"])
def test_missing_keys(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        from_dict(Outer, {name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", b"\xff\xfe", "[" * 100_000, '{"name": NaN'])
def test_broken_json_is_a_config_error(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="here"):
        loads(Outer, text, "here")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_any_json_is_taken_or_refused(data: object) -> None:
    try:
        record = from_dict(Outer, data)
    except ConfigError:
        return
    assert to_dict(record)["name"] == record.name


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"deadline_s": -1.0},
    ],
)
def test_sampling_out_of_range(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"{name} must be"):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"alpha": -1.0}, {"beta": 1.5}, {"sigma": math.nan}, {"top_k": -1}, {"shift": -1.0}, {"threshold": 2.0}],
)
def test_steering_out_of_range(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"{name} must be"):
        from_dict(SafeCodeConfig, settings)


def test_a_whole_number_that_no_float_holds() -> None:
    with pytest.raises(ConfigError, match=r"inner: share must be a number, got an integer that is too large"):
        loads(Inner, '{"count": 1, "share": 1' + "0" * 400 + "}", "inner")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reference", "cache"),
        ("contrast", "VCD"),
        ("verdict", "Soft"),
        ("fallback", "Refuse"),
        ("fallback", None),
    ],
)
def test_choices_are_checked_in_python_too(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be one of .*, got {value!r}"):
        SafeCodeConfig(**{name: value})
