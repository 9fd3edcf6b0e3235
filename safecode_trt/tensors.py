"""Memory-mapped safetensors files: the header is read, the tensors stay on disk until they are used.

numpy has no bfloat16: such tensors are seen as uint16, and `as_float32` widens any of the float types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import CheckpointError

__all__ = ["MappedTensor", "as_float32", "map_tensors"]

DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
MAX_HEADER = 100 << 20


class MappedTensor:
    """One tensor of a file: `dtype` in the file's word, `shape`, and `data`, a view of the mapped file."""

    __slots__ = ("data", "dtype", "name", "shape")

    def __init__(self, name: str, dtype: str, data: NDArray[Any]) -> None:
        self.name, self.dtype, self.data = name, dtype, data
        self.shape: tuple[int, ...] = data.shape

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows `index` of axis 0 in float32; only these are read from disk."""
        return as_float32(self.data[index], self.dtype)

    def float32(self) -> NDArray[np.float32]:
        """The whole tensor in float32."""
        return as_float32(self.data, self.dtype)


def as_float32(data: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """float16, bfloat16 (as uint16), float32 or float64 values in float32, exactly where float32 allows."""
    if dtype == "BF16":
        wide = data.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype not in ("F16", "F32", "F64"):
        raise CheckpointError(f"expected a tensor of float16, bfloat16 or float32, got {dtype}")
    return data.astype(np.float32)


def map_tensors(path: Path) -> dict[str, MappedTensor]:
    """Maps a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, or its header is not that of a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{path} is truncated or not a safetensors file ({size} bytes)")
            header = json.loads(file.read(length))
        payload = (
            np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
            if size > 8 + length
            else np.empty(0, np.uint8)
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is no object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: _tensor(path, name, entry, payload) for name, entry in entries.items()}


def _tensor(path: Path, name: str, entry: Mapping[str, Any], payload: NDArray[np.uint8]) -> MappedTensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: tensor {name} has a broken header entry") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise CheckpointError(f"{path}: tensor {name} has a broken header entry")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has type {dtype}; known: {', '.join(DTYPES)}")
    bytes_expected = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if not start <= end <= len(payload) or end - start != bytes_expected:
        raise CheckpointError(
            f"{path} is truncated: tensor {name} needs {bytes_expected} bytes at {start}, "
            f"the file has {len(payload)} bytes of data"
        )
    return MappedTensor(name, dtype, payload[start:end].view(DTYPES[dtype]).reshape(shape))
