"""The key/value cache of one reply: which positions of which rows are filled.

The session owns the memory; this owns the positions. Few verbs: advance, fork, keep, load, save.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import CapacityError
from safecode_trt.runtime.session import CacheMemory, Prefix

__all__ = ["KVCache"]


class KVCache:
    """Row lengths over a session's memory; `rows` is how many leading rows are still carried."""

    def __init__(self, memory: CacheMemory, *, rows: int) -> None:
        self.memory = memory
        self.rows = rows
        self.lengths: NDArray[np.int64] = np.zeros(rows, np.int64)

    def require(self, new: int, *, first_row: int = 0, rows: int | None = None) -> None:
        """Makes room for `new` tokens after each of `rows` rows, by default all that are carried.

        Raises:
            CapacityError: a row would hold more positions than it may.
        """
        last_row = self.rows if rows is None else first_row + rows
        longest = int(self.lengths[first_row:last_row].max())
        if longest + new > self.memory.limit:
            raise CapacityError(
                f"the key/value cache holds {self.memory.limit} positions: {longest} are filled, "
                f"{new} more are needed"
            )
        self.memory.reserve(longest + new, rows=self.rows)

    def advance(self, counts: NDArray[np.int64], *, first_row: int = 0) -> None:
        """Counts `counts[c]` new positions of the rows from `first_row` on as filled."""
        self.lengths[first_row : first_row + len(counts)] += counts

    def fork(self, source: int, target: int, length: int) -> None:
        """Makes the first `length` positions of row `source` those of row `target`."""
        self.memory.copy_prefix(source, target, length)
        self.lengths[target] = length

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows. They are the first slice of the memory: nothing is copied."""
        self.rows = rows

    def rewind(self, length: int) -> None:
        """Goes on with row 0 alone, after its first `length` positions."""
        self.keep(1)
        self.lengths[0] = length

    def load(self, row: int, prefix: Prefix) -> None:
        """Fills the start of a row from a saved prefix."""
        self.memory.reserve(prefix.length, rows=self.rows)
        self.memory.load_prefix(row, prefix)
        self.lengths[row] = prefix.length

    def save(self, row: int, length: int) -> Prefix:
        """Copies the first `length` positions of a row out."""
        return self.memory.save_prefix(row, length)
