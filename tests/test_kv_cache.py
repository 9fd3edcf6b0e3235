"""The key/value cache: how large it is, that it grows without loss, and where it ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.errors import CapacityError
from safecode_trt.runtime.backends.host_cache import STEP, HostCache, capacity_for
from safecode_trt.runtime.kv_cache import KVCache

lengths = st.integers(1, 40_000)


def memory(limit: int, *, rows: int = 2) -> HostCache:
    return HostCache(slabs=4, rows=rows, heads=3, limit=limit, dim=2, dtype=np.float32)


def write(cache: KVCache, count: int, draw: np.random.Generator) -> np.ndarray:
    """What a pass does: numbers behind every carried row. Returns them (slabs, rows, heads, count, D)."""
    cache.require(count)
    assert isinstance(cache.memory, HostCache)
    data, start = cache.memory.data, int(cache.lengths[0])
    new = draw.standard_normal((*data[:, : cache.rows].shape[:3], count, data.shape[4]), dtype=np.float32)
    data[:, : cache.rows, :, start : start + count] = new
    cache.advance(np.full(cache.rows, count))
    return new


# ---- how large it is


@given(lengths, lengths)
def test_a_capacity_holds_what_is_needed_and_little_more(first: int, second: int) -> None:
    positions, limit = sorted((first, second))
    capacity = capacity_for(positions, limit)
    assert positions <= capacity <= limit
    assert capacity - positions < max(STEP, positions / 4)
    assert capacity == limit or capacity % STEP == 0
    assert capacity_for(capacity, limit) == capacity
    assert capacity_for(positions - 1, limit) <= capacity


@given(lengths)
def test_copying_costs_a_bounded_part_of_writing(limit: int) -> None:
    sizes = [capacity_for(1, limit)]
    while sizes[-1] < limit:
        sizes.append(capacity_for(sizes[-1] + 1, limit))
    for index in range(1, len(sizes)):
        assert sum(sizes[:index]) <= 7 * sizes[index - 1]
    # Short of the limit, no size is so near to the one before that it is hardly worth the copy.
    assert all(larger - smaller >= max(STEP, smaller / 8) for smaller, larger in pairwise(sizes[:-1]))


# ---- it grows without loss


@given(
    st.lists(st.integers(1, 120), min_size=1, max_size=8),
    st.lists(st.integers(1, 120), max_size=4),
    st.integers(0, 2**32),
)
def test_a_cache_keeps_what_was_written(counts: list[int], alone: list[int], seed: int) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    held = memory(2000)
    for _ in range(2):  # the second time in the buffer that the first has left, moving within it
        held.clear()
        cache = KVCache(held, rows=2)
        both = [write(cache, count, draw) for count in counts]
        cache.keep(1)
        first = [write(cache, count, draw) for count in alone]
        expected = np.concatenate([part[:, 0] for part in both + first], axis=2)
        assert np.array_equal(cache.save(0, sum(counts + alone)).data, expected)
        assert held.capacity == capacity_for(sum(counts + alone), 2000)
        assert np.isfinite(held.data).all()


def test_memory_starts_small_and_is_kept_when_cleared() -> None:
    held = memory(1000)
    assert (held.capacity, held.limit) == (STEP, 1000)
    held.reserve(900)
    address, size = held.data.ctypes.data, held.nbytes
    held.clear()
    held.reserve(70)
    assert (held.capacity, held.nbytes, held.data.ctypes.data) == (128, size, address)
    assert held.data.flags.c_contiguous


def test_a_saved_prefix_finds_room_in_small_memory() -> None:
    draw = np.random.Generator(np.random.PCG64(1))
    long = KVCache(memory(1000), rows=1)
    write(long, 300, draw)
    small = KVCache(memory(1000), rows=2)
    write(small, 10, draw)
    row = small.save(0, 10).data
    small.load(1, long.save(0, 290))
    assert small.lengths.tolist() == [10, 290] and small.memory.capacity == 320
    assert np.array_equal(small.save(1, 290).data, long.save(0, 290).data)
    assert np.array_equal(small.save(0, 10).data, row)


# ---- where it ends


@pytest.mark.parametrize("limit", [1, 63, 64, 65, 100, 600])
def test_the_limit_is_exact(limit: int) -> None:
    held = memory(limit)
    cache = KVCache(held, rows=2)
    write(cache, limit - 1, np.random.Generator(np.random.PCG64(0)))
    cache.require(1)
    assert held.capacity == limit
    cache.advance(np.ones(2, np.int64))
    with pytest.raises(CapacityError, match=f"holds {limit} positions: {limit} are filled, 1 more"):
        cache.require(1)
    with pytest.raises(ValueError, match=f"at most {limit} positions"):
        held.reserve(limit + 1)
