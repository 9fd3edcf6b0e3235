"""Key/value memory in host RAM: one array for all layers, so that a prefix is one slice.

Every step reads the whole array, so it is little larger than what is filled, and grows.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from safecode_trt.contract import Geometry
from safecode_trt.runtime.session import Prefix

__all__ = ["HostCache", "capacity_for"]

STEP = 64


def capacity_for(positions: int, limit: int) -> int:
    """The capacity with room for so many positions: multiples of 64 up to 512, then 4 sizes in each doubling."""
    step = max(STEP, 1 << max((positions - 1).bit_length() - 3, 0))
    return min(-(-positions // step) * step, limit)


class HostCache:
    """`data` is (2 L, C, H, CAP, D): key and value of layer 0, of layer 1, ... .

    What nobody has written is zero or left by an earlier reply, never what the allocator found: positions that
    are masked still meet a weight of 0, and 0 times NaN is NaN.
    """

    def __init__(self, *, slabs: int, rows: int, heads: int, limit: int, dim: int, dtype: DTypeLike) -> None:
        self.rows, self.limit = rows, limit
        self._slabs, self._heads, self._dim = slabs, heads, dim
        self._buffer = np.zeros(0, dtype=dtype)
        self.data = self._of_capacity(capacity_for(1, limit))

    @classmethod
    def for_decoder(cls, geometry: Geometry, rows: int, dtype: DTypeLike) -> HostCache:
        """Memory for the keys and values of every layer of a decoder."""
        return cls(
            slabs=2 * geometry.num_hidden_layers,
            rows=rows,
            heads=geometry.num_key_value_heads,
            limit=geometry.context_length,
            dim=geometry.head_dim,
            dtype=dtype,
        )

    @property
    def capacity(self) -> int:
        return int(self.data.shape[3])

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def slab(self, number: int, first_row: int = 0) -> int:
        """The address of a layer's keys or values from a row on: `number` is 2 layer, or 2 layer + 1."""
        return int(self.data.ctypes.data) + number * self.data.strides[0] + first_row * self.data.strides[1]

    def reserve(self, positions: int, *, rows: int | None = None) -> None:
        """Makes room for so many positions; `data` is another array if there was not.

        Raises:
            ValueError: it is more than the limit.
        """
        if positions > self.limit:
            raise ValueError(f"expected at most {self.limit} positions, got {positions}")
        if positions <= self.capacity:
            return
        old, filled = self.data, self.capacity
        self.data = self._of_capacity(capacity_for(positions, self.limit))
        # The last slab first: both may lie in one buffer, where every slab moves towards the end.
        for slab in reversed(range(len(old) if filled else 0)):
            self.data[slab, :rows, :, :filled] = old[slab, :rows]

    def clear(self) -> None:
        """Forgets what all rows hold; the buffer stays, whatever is in it."""
        self.data = self._of_capacity(0)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` to row `target`."""
        self.data[:, target, :, :length] = self.data[:, source, :, :length]

    def save_prefix(self, row: int, length: int) -> Prefix:
        """Copies the first `length` positions of a row out."""
        return Prefix(length, self.data[:, row, :, :length].copy())

    def load_prefix(self, row: int, prefix: Prefix) -> None:
        """Copies saved positions into a row."""
        self.data[:, row, :, : prefix.length] = prefix.data

    def _of_capacity(self, capacity: int) -> NDArray[Any]:
        """The start of the buffer in that shape; a buffer too small for it is replaced."""
        shape = (self._slabs, self.rows, self._heads, capacity, self._dim)
        if (size := prod(shape)) > self._buffer.size:
            self._buffer = np.zeros(size, dtype=self._buffer.dtype)
        return self._buffer[:size].reshape(shape)
