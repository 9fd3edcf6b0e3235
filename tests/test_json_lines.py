"""Files of JSON lines: whatever was written is read back, and whatever is wrong has its line's number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.errors import EvalError
from safecode_trt.json_lines import LineWriter, encode, parse, read_lines, read_values

texts = st.text(st.characters(exclude_categories=()))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_a_value_is_one_line_that_json_reads(value: object) -> None:
    line = encode(value)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert json.loads(line) == value == parse(line)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number_that_json_lacks_is_written(number: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        encode({"a": number})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"hello\n", "is not valid JSON"),
        (b'{"a": 1, "a": 2}\n', "the key 'a' is there twice"),
        (b"[NaN]\n", "NaN is no number"),
        (b"[-Infinity]\n", "-Infinity is no number"),
        (b"[1e999]\n", "1e999 is no number that is finite"),
        (b'["\xff"]\n', "is not UTF-8 text"),
        (b"[" * 100_000 + b"\n", "is not valid JSON"),
        (b'{"a": ', "is cut off"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"{}\n\n" + line)
    first, second = read_lines(path)
    assert (first.number, first.value, first.problem) == (1, {}, None)
    assert second.number == 3 and second.problem is not None and problem in second.problem
    with pytest.raises(EvalError) as caught:
        list(read_values(path, EvalError))
    assert caught.value.where == f"{path}:3"


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"1\n" + b"2" * 100 + b"\n3\n")
    first, second = read_lines(path, longest=10)
    assert first.value == 1 and second.problem == "is longer than 10 bytes" and len(second.text) == 11


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot be read: No such file"):
        list(read_values(tmp_path / "nothing", EvalError))


def test_a_shared_file_ends_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n{"b"')
    writer = LineWriter(path, shared=True)
    writer.append({"c": 3})
    writer.close()
    assert path.read_bytes() == b'{"a": 1}\n{"b"\n{"c": 3}\n'


@pytest.mark.parametrize("shared", [True, False])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"1\n")
    writer = LineWriter(path, shared=shared, size=2)
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 6:
            raise OSError(28, os.strerror(28))
        return write(descriptor, data[:4])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        writer.append("22222")
    monkeypatch.undo()
    writer.close()
    assert path.read_bytes() == (b'1\n"222' if shared else b"1\n")


def test_a_file_with_one_writer_goes_on_after_its_size(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"1\n2\n{")
    writer = LineWriter(path, shared=False, size=4, sync=True)
    writer.append(3)
    writer.close()
    assert path.read_bytes() == b"1\n2\n3\n"
