"""Tensors in numpy by the manifest's words for their types, also bfloat16, which numpy has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["StoredFloats"]

BFLOAT16 = 16  # ONNX's number of the type


@dataclass(frozen=True, slots=True)
class StoredFloats:
    """How numbers of the type `dtype` are stored here, and ONNX Runtime's word for it.

    numpy has no bfloat16: its bits are in uint16, and the type is ONNX's number for it.
    """

    dtype: str
    storage: np.dtype[Any]
    type: Any

    @classmethod
    def of(cls, dtype: str) -> StoredFloats:
        if dtype == "bfloat16":
            return cls(dtype, np.dtype(np.uint16), BFLOAT16)
        return cls(dtype, np.dtype(dtype), np.dtype(dtype))

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Room for an input; those of other types than float32 stay as they are."""
        return np.empty(shape, self.storage if dtype == np.float32 else dtype)

    def stored(self, value: NDArray[Any]) -> NDArray[Any]:
        """An input in the stored form, itself if it has it."""
        if value.dtype != np.float32 or self.storage == np.float32:
            return np.ascontiguousarray(value)
        array = self.array(value.shape, value.dtype)
        self.fill(array, value)
        return array

    def fill(self, target: NDArray[Any], value: NDArray[Any]) -> None:
        """Writes an input in the stored form, rounded to nearest."""
        if self.dtype == "bfloat16" and value.dtype.kind == "f":
            bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
            target[...] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        else:
            np.copyto(target, value, casting="same_kind")

    def read(self, value: NDArray[Any]) -> NDArray[np.float32]:
        """An output in the stored form as float32."""
        if self.dtype == "bfloat16":
            return (value.astype(np.uint32) << 16).view(np.float32)
        return value.astype(np.float32, copy=False)
