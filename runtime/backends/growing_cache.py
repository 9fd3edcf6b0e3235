"""Key/value memory on the GPU: one buffer for all layers, so that a prefix of a row is one strided copy.

The same layout and the same sizes as in host RAM (`host_cache.py`). A cache that grows moves into a new buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

from safecode_trt.contract import Geometry
from safecode_trt.runtime.backends.host_cache import capacity_for
from safecode_trt.runtime.cuda_memory import Block, CudaBuffer, CudaMemory
from safecode_trt.runtime.session import Prefix

__all__ = ["GrowingCache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slabs:
    """Slabs (R, H, CAP, D) in a buffer, one behind the other."""

    buffer: CudaBuffer
    rows: int
    capacity: int


class GrowingCache:
    """Slabs (2 L, C, H, CAP, D) on the GPU: key and value of layer 0, of layer 1, ... ; zero at first.

    Raises:
        MemoryError: the GPU has no room for it, here or when it grows.
    """

    def __init__(
        self,
        memory: CudaMemory,
        *,
        slabs: int,
        rows: int,
        heads: int,
        limit: int,
        dim: int,
        itemsize: int,
    ) -> None:
        self.rows, self.limit = rows, limit
        self._memory, self._slabs, self._heads, self._line = memory, slabs, heads, dim * itemsize
        self._data = self._new(rows, capacity_for(1, limit))

    @classmethod
    def for_decoder(cls, memory: CudaMemory, geometry: Geometry, rows: int, itemsize: int) -> GrowingCache:
        """Memory for the keys and values of every layer of a decoder."""
        return cls(
            memory,
            slabs=2 * geometry.num_hidden_layers,
            rows=rows,
            heads=geometry.num_key_value_heads,
            limit=geometry.context_length,
            dim=geometry.head_dim,
            itemsize=itemsize,
        )

    @property
    def capacity(self) -> int:
        return self._data.capacity

    @property
    def nbytes(self) -> int:
        return self._data.buffer.size

    def address(self, slab: int, row: int) -> int:
        """Where the keys or values of a row begin."""
        data = self._data
        return data.buffer.address + (slab * data.rows + row) * self._row_bytes(data.capacity)

    def reserve(self, positions: int, *, rows: int | None = None) -> None:
        """Makes room for so many positions, at another address if there was not.

        Raises:
            ValueError: it is more than the limit.
        """
        if positions > self.limit:
            raise ValueError(f"expected at most {self.limit} positions, got {positions}")
        if positions <= self.capacity:
            return
        old, capacity = self._data, capacity_for(positions, self.limit)
        if old.capacity or self._bytes(self.rows, capacity) > old.buffer.size:
            self._data = self._new(self.rows, capacity)
            self._copy(old, 0, self._data, 0, old.capacity, rows=rows)
        else:
            self._data = Slabs(buffer=old.buffer, rows=self.rows, capacity=capacity)

    def clear(self) -> None:
        """Forgets what all rows hold; the buffer stays, whatever is in it."""
        self._data = Slabs(buffer=self._data.buffer, rows=self.rows, capacity=0)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` to row `target`."""
        if source != target:
            self._copy(self._data, source, self._data, target, length, rows=1)

    def save_prefix(self, row: int, length: int) -> Prefix:
        """Copies the first `length` positions of a row out, to another place on the GPU."""
        saved = self._new(1, length)
        self._copy(self._data, row, saved, 0, length, rows=1)
        return Prefix(length, saved)

    def load_prefix(self, row: int, prefix: Prefix) -> None:
        """Copies saved positions into a row."""
        self._copy(prefix.data, 0, self._data, row, prefix.length, rows=1)

    def _copy(
        self, source: Slabs, first: int, target: Slabs, place: int, positions: int, *, rows: int | None
    ) -> None:
        """The first positions of rows from `first` on to those from `place` on, in every slab."""
        if positions == 0:
            return
        self._memory.copy(
            self._block(source, first),
            self._block(target, place),
            width=positions * self._line,
            height=(self.rows if rows is None else rows) * self._heads,
            depth=self._slabs,
        )

    def _block(self, data: Slabs, row: int) -> Block:
        address = data.buffer.address + row * self._row_bytes(data.capacity)
        return Block(address=address, pitch=data.capacity * self._line, lines=data.rows * self._heads)

    def _new(self, rows: int, capacity: int) -> Slabs:
        buffer = self._memory.buffer(max(self._bytes(rows, capacity), 1))
        return Slabs(buffer=buffer, rows=rows, capacity=capacity)

    def _bytes(self, rows: int, capacity: int) -> int:
        return self._slabs * rows * self._row_bytes(capacity)

    def _row_bytes(self, capacity: int) -> int:
        return self._heads * capacity * self._line
