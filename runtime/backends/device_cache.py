"""Key/value memory on a GPU: one piece for all layers, of the capacity that the engines are built for.

What grows is only how much of it a pass looks at, in the same sizes as on the host: for each of them a decode step is
captured once.
"""

from __future__ import annotations

import math

import numpy as np

from safecode_trt.contract import Geometry
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.cuda_stream import Buffer, CudaStream, Planes
from safecode_trt.runtime.backends.host_cache import capacity_for
from safecode_trt.runtime.session import Prefix

__all__ = ["ALIGNMENT", "DeviceCache", "element_bytes"]

ALIGNMENT = 256
"""What the addresses of TensorRT's tensors must be multiples of."""


def element_bytes(dtype: str) -> int:
    """The size of an element; numpy has no bfloat16."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class DeviceCache:
    """(2 L, C, H, CAP, D) on the device: key and value of layer 0, of layer 1, ...

    Raises:
        MemoryError: the GPU has no room for it.
        BackendError: rows of this size cannot be bound one by one.
    """

    def __init__(self, stream: CudaStream, geometry: Geometry, rows: int, dtype: str) -> None:
        self.rows, self.limit = rows, geometry.context_length
        self._stream, self._heads = stream, geometry.num_key_value_heads
        self._slabs = 2 * geometry.num_hidden_layers
        self._position = geometry.head_dim * element_bytes(dtype)  # bytes, as is all below
        self._line = self.limit * self._position
        self._row = self._heads * self._line
        if self._row % ALIGNMENT:
            step = ALIGNMENT // math.gcd(ALIGNMENT, self._heads * self._position)
            raise BackendError(
                f"a row of the cache has {self._row} bytes, and TensorRT wants multiples of {ALIGNMENT}; export "
                f"with a --context-length that {step} divides"
            )
        self._memory: Buffer = stream.allocate(self._slabs * rows * self._row)
        stream.zero(self._memory)  # a masked NaN is still NaN
        self.capacity = capacity_for(1, self.limit)

    @property
    def address(self) -> int:
        """Where slab 0 of row 0 begins."""
        return self._memory.handle

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def slab(self, number: int, first_row: int = 0) -> int:
        """The address of a layer's keys or values from a row on: `number` is 2 layer, or 2 layer + 1."""
        return self.address + (number * self.rows + first_row) * self._row

    def reserve(self, positions: int, *, rows: int | None = None) -> None:
        """Looks at so many positions at least; none of them moves.

        Raises:
            ValueError: it is more than the limit.
        """
        if positions > self.limit:
            raise ValueError(f"expected at most {self.limit} positions, got {positions}")
        self.capacity = max(self.capacity, capacity_for(positions, self.limit))

    def clear(self) -> None:
        """Forgets what all rows hold; it stays finite."""
        self.capacity = capacity_for(1, self.limit)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` to row `target`."""
        self._copy(self._planes(target), self._planes(source), length)

    def save_prefix(self, row: int, length: int) -> Prefix:
        """Copies the first `length` positions of a row to memory of their own on the device."""
        line = length * self._position
        saved = self._stream.allocate(self._slabs * self._heads * line)
        self._copy(Planes(saved.handle, line, self._heads), self._planes(row), length)
        return Prefix(length, saved)

    def load_prefix(self, row: int, prefix: Prefix) -> None:
        """Copies saved positions into a row."""
        line = prefix.length * self._position
        self._copy(self._planes(row), Planes(prefix.data.handle, line, self._heads), prefix.length)

    def take(self, other: DeviceCache, *, source: int, target: int, start: int, count: int) -> None:
        """Copies `count` positions from `start` on out of a row of another cache of the same geometry."""
        self._copy(self._planes(target, start), other._planes(source, start), count)

    def _planes(self, row: int, start: int = 0) -> Planes:
        return Planes(self.slab(0, row) + start * self._position, self._line, self.rows * self._heads)

    def _copy(self, target: Planes, source: Planes, count: int) -> None:
        width = count * self._position
        self._stream.copy_planes(target, source, width=width, lines=self._heads, planes=self._slabs)
