"""The memory map against the format's own writer, and against files that lie."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from safecode_trt.errors import CheckpointError
from safecode_trt.tensors import as_float32, map_tensors

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_reads_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    data = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save_file(
        {"a": data, "empty": data[:0], "scalar": np.array(1, dtype)}, tmp_path / "x", metadata={"k": "v"}
    )
    tensors = map_tensors(tmp_path / "x")
    assert set(tensors) == {"a", "empty", "scalar"}
    assert tensors["a"].data.dtype == dtype and tensors["a"].shape == (2, 3, 4)
    assert np.array_equal(tensors["a"].data, data)
    assert tensors["empty"].shape == (0, 3, 4) and tensors["scalar"].shape == ()


def test_the_tensors_stay_on_disk(tmp_path: Path) -> None:
    save_file({"a": np.ones((4, 4), np.float32)}, tmp_path / "x")
    base = map_tensors(tmp_path / "x")["a"].data
    while base is not None and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    assert isinstance(base, np.memmap) and not base.flags.writeable


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    values = np.array([0.0, -0.0, 1.0, -2.5, 3.0e38, 1e-40, np.inf, -np.inf, np.nan], ml_dtypes.bfloat16)
    raw = values.view(np.uint16).tobytes()
    write(tmp_path / "x", {"a": {"dtype": "BF16", "shape": [9], "data_offsets": [0, len(raw)]}}, raw)
    wide = map_tensors(tmp_path / "x")["a"].float32()
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, values.astype(np.float32))


@given(st.lists(st.floats(width=16), min_size=1), st.sampled_from(["F16", "F32", "F64"]))
def test_floats_widen_exactly(values: list[float], dtype: str) -> None:
    data = np.array(values, {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])
    np.testing.assert_array_equal(as_float32(data, dtype), data.astype(np.float32))


def test_rows_are_taken_from_the_table(tmp_path: Path) -> None:
    table = np.arange(20, dtype=np.float16).reshape(5, 4)
    save_file({"a": table}, tmp_path / "x")
    rows = map_tensors(tmp_path / "x")["a"].rows(np.array([4, 0, 4]))
    assert rows.dtype == np.float32 and np.array_equal(rows, table[[4, 0, 4]])


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.int32)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="expected a tensor of float16, bfloat16 or float32, got I32"):
        map_tensors(tmp_path / "x")["a"].float32()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        map_tensors(tmp_path / "x")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        map_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20])
def test_a_file_cut_in_its_header(tmp_path: Path, kept: int) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "x")
    (tmp_path / "y").write_bytes((tmp_path / "x").read_bytes()[:kept])
    with pytest.raises(CheckpointError):
        map_tensors(tmp_path / "y")


def test_a_file_cut_in_its_data(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "x")
    (tmp_path / "y").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is truncated: tensor a needs 12 bytes at 0"):
        map_tensors(tmp_path / "y")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 1 << 40, 101 << 20])
def test_a_header_that_claims_to_be_enormous(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        map_tensors(write(tmp_path / "x", {}, length=length))


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN', b'{"a" 1}']
)
def test_a_header_that_is_no_object(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(CheckpointError, match="safetensors file"):
        map_tensors(write(tmp_path / "x", header))


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F8_E4M3"},
        {"dtype": 3},
        {"dtype": ["F32"]},
        {"shape": 2},
        {"shape": ["x"]},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [-1, -2]},
        {"shape": [2**62, 4]},
        {"shape": [2**64]},
        {"shape": None},
        {"data_offsets": [0]},
        {"data_offsets": [0, 8, 16]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [4, 12]},
        {"data_offsets": [2**60, 2**60 + 8]},
        {"data_offsets": ["0", "8"]},
        {"data_offsets": [0.0, 8.0]},
        {"data_offsets": None},
    ],
)
def test_an_entry_that_lies(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        map_tensors(write(tmp_path / "x", {"a": {**GOOD, **change}}, b"\0" * 8))


@pytest.mark.parametrize("entry", [None, 3, "x", [], {}])
def test_an_entry_that_is_none(tmp_path: Path, entry: object) -> None:
    with pytest.raises(CheckpointError):
        map_tensors(write(tmp_path / "x", {"a": entry}))


@given(data=st.binary(max_size=200))
def test_garbage_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        map_tensors(path)


numbers = st.lists(st.integers(-2, 20) | st.sampled_from([2**31, 2**63, 2**64]), max_size=3)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "U8", "x"]), "shape": numbers, "data_offsets": numbers}
)


@given(header=st.dictionaries(st.sampled_from("ab"), entries | st.none()))
def test_any_header_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, header: object) -> None:
    path = write(tmp_path_factory.getbasetemp() / "header", header, b"\0" * 16)
    with contextlib.suppress(CheckpointError):
        map_tensors(path)
