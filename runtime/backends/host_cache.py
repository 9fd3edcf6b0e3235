"""Key/value memory in host RAM: one array for all layers, so that a prefix is one slice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from safecode_trt.contract import Geometry
from safecode_trt.runtime.session import Prefix

__all__ = ["HostCache"]


class HostCache:
    """`data` is (2 L, C, H, CAP, D): key and value of layer 0, of layer 1, ... .

    Zeroed, because positions that are masked still meet a weight of 0, and 0 times NaN is NaN.
    """

    def __init__(
        self, *, slabs: int, rows: int, heads: int, capacity: int, dim: int, dtype: DTypeLike
    ) -> None:
        self.data: NDArray[Any] = np.zeros((slabs, rows, heads, capacity, dim), dtype=dtype)

    @classmethod
    def for_decoder(cls, geometry: Geometry, rows: int, dtype: DTypeLike) -> HostCache:
        """Memory for the keys and values of every layer of a decoder."""
        return cls(
            slabs=2 * geometry.num_hidden_layers,
            rows=rows,
            heads=geometry.num_key_value_heads,
            capacity=geometry.context_length,
            dim=geometry.head_dim,
            dtype=dtype,
        )

    @property
    def rows(self) -> int:
        return int(self.data.shape[1])

    @property
    def capacity(self) -> int:
        return int(self.data.shape[3])

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` to row `target`."""
        self.data[:, target, :, :length] = self.data[:, source, :, :length]

    def save_prefix(self, row: int, length: int) -> Prefix:
        """Copies the first `length` positions of a row out."""
        return Prefix(length, self.data[:, row, :, :length].copy())

    def load_prefix(self, row: int, prefix: Prefix) -> None:
        """Copies saved positions into a row."""
        self.data[:, row, :, : prefix.length] = prefix.data
