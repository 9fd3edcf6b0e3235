"""Key/value memory on a GPU: one piece for all layers, so that a prefix of a row is one strided copy.

The sizes are those of `host_cache.py`. An engine's cache has one length, of which a pass looks at more and more; ONNX
Runtime looks at all that is bound, so there the cache moves when it grows.
"""

from __future__ import annotations

from safecode_trt.contract import Geometry
from safecode_trt.runtime.backends.cuda_stream import Buffer, CudaStream, Planes
from safecode_trt.runtime.backends.host_cache import capacity_for
from safecode_trt.runtime.backends.stored_floats import StoredFloats
from safecode_trt.runtime.session import Prefix

__all__ = ["DeviceCache", "GrowingCache"]


class DeviceCache:
    """(2 L, C, H, CAP, D) on the device: key and value of layer 0, of layer 1, ... CAP is the limit.

    Raises:
        MemoryError: the GPU has no room for it.
    """

    def __init__(self, stream: CudaStream, geometry: Geometry, rows: int, dtype: str) -> None:
        self.rows, self.limit = rows, geometry.context_length
        self.capacity = capacity_for(1, self.limit)
        self._stream, self._heads = stream, geometry.num_key_value_heads
        self._slabs = 2 * geometry.num_hidden_layers
        self._position = geometry.head_dim * StoredFloats.of(dtype).storage.itemsize  # bytes, as is all below
        self._memory = self._zeros()

    @property
    def room(self) -> int:
        """CAP."""
        return self.limit

    @property
    def row_bytes(self) -> int:
        """From one row's keys or values to the next one's."""
        return self._heads * self.room * self._position

    @property
    def address(self) -> int:
        """Where slab 0 of row 0 begins."""
        return self._memory.handle

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def slab(self, number: int, first_row: int = 0) -> int:
        """The address of a layer's keys or values from a row on: `number` is 2 layer, or 2 layer + 1."""
        return self.address + (number * self.rows + first_row) * self.row_bytes

    def reserve(self, positions: int, *, rows: int | None = None) -> None:
        """Looks at so many positions at least.

        Raises:
            ValueError: it is more than the limit.
        """
        if positions > self.limit:
            raise ValueError(f"expected at most {self.limit} positions, got {positions}")
        if positions > self.capacity:
            self._grow(capacity_for(positions, self.limit), self.rows if rows is None else rows)

    def clear(self) -> None:
        """Forgets what all rows hold; it stays finite."""
        self.capacity = 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` to row `target`."""
        if source != target:
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

    def _grow(self, capacity: int, rows: int) -> None:
        self.capacity = capacity

    def _zeros(self) -> Buffer:
        """Memory for all slabs: a masked NaN is still NaN."""
        memory = self._stream.allocate(self._slabs * self.rows * self.row_bytes)
        self._stream.zero(memory)
        return memory

    def _planes(self, row: int, start: int = 0) -> Planes:
        line = self.room * self._position
        return Planes(self.slab(0, row) + start * self._position, line, self.rows * self._heads)

    def _copy(self, target: Planes, source: Planes, count: int, *, rows: int = 1) -> None:
        width, lines = count * self._position, rows * self._heads
        self._stream.copy_planes(target, source, width=width, lines=lines, planes=self._slabs)


class GrowingCache(DeviceCache):
    """A cache whose CAP is its capacity: it lies elsewhere after it has grown.

    Raises:
        MemoryError: the GPU has no room for it, here or when it grows.
    """

    @property
    def room(self) -> int:
        """CAP."""
        return self.capacity

    def _grow(self, capacity: int, rows: int) -> None:
        filled, old, memory = self.capacity, self._planes(0), self._memory
        self.capacity = capacity
        if filled or self._slabs * self.rows * self.row_bytes > memory.nbytes:
            self._move(filled, old, rows)

    def _move(self, filled: int, old: Planes, rows: int) -> None:
        try:
            self._memory = self._zeros()
        except MemoryError:
            self.capacity = filled
            raise
        self._copy(self._planes(0), old, filled, rows=rows)
