"""The logit operations: worked numbers, and what holds for every row of logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from safecode_trt.ops.reference import (
    ContrastForm,
    argmax_lowest,
    contrast,
    p_unsafe,
    plausible,
    refusal_shift,
    top_k_ids,
)

INF = math.inf
FORMS: tuple[ContrastForm, ...] = ("difference", "vcd")


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


# Few different values, so that ties are common; -inf as after a mask.
VALUES = st.one_of(st.sampled_from([-INF, -1.0, 0.0, -0.0, 2.0]), st.floats(-50, 50, width=32))


def tables(rows: int, most: int = 40) -> st.SearchStrategy[Any]:
    shapes = st.tuples(st.just(rows), st.integers(1, most))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=VALUES))


def test_contrast_by_hand() -> None:
    real, reference = f32(2.0, 1.0, -3.0), f32(1.0, 2.0, -1.0)
    np.testing.assert_array_equal(contrast(real, reference, 0.5, "difference"), f32(1.5, 0.0, -2.5))
    np.testing.assert_array_equal(contrast(real, reference, 0.5, "vcd"), f32(2.5, 0.5, -4.0))


def test_the_papers_contrast_is_vcd_at_a_higher_temperature() -> None:
    random = np.random.default_rng(1)
    real, reference = random.normal(0, 3, (2, 50)).astype(np.float32)
    ours = contrast(real, reference, 0.3, "difference")
    vcd = contrast(real, reference, 0.3 / 0.7, "vcd")
    np.testing.assert_allclose(ours / 0.7, vcd, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_excluded_tokens_in_the_contrast(form: ContrastForm) -> None:
    out = contrast(f32(-INF, -INF, 1.0, 1.0), f32(-INF, 3.0, -INF, 1.0), 1.0, form)
    assert list(out[:3]) == [-INF, -INF, INF]
    assert math.isfinite(out[3])


@pytest.mark.parametrize("form", FORMS)
@given(both=tables(2))
def test_contrast_without_weight_is_the_real_row(form: ContrastForm, both: NDArray[np.float32]) -> None:
    out = contrast(both[0], both[1], 0.0, form)
    assert out.tobytes() == both[0].tobytes()
    assert not np.shares_memory(out, both)


@pytest.mark.parametrize("form", FORMS)
@given(both=tables(6), alpha=st.floats(0, 5))
def test_contrast_of_rows(form: ContrastForm, both: NDArray[np.float32], alpha: float) -> None:
    before = both.copy()
    real, reference = both[:3], both[3:]
    out = contrast(real, reference, alpha, form)
    assert out.dtype == np.float32 and not np.isnan(out).any()
    np.testing.assert_array_equal(both, before)
    one_by_one = [contrast(a, b, alpha, form) for a, b in zip(real, reference, strict=True)]
    np.testing.assert_array_equal(out, np.array(one_by_one))


def test_plausible_by_hand() -> None:
    logits = np.log(f32(0.5, 0.06, 0.04, 0.4))
    assert plausible(logits, 0.1).tolist() == [True, True, False, True]
    assert plausible(logits, 0.9).tolist() == [True, False, False, False]
    assert plausible(f32(1.0, -INF), 0.0).all()


@given(rows=tables(3), beta=st.floats(0, 1))
def test_plausible_keeps_the_likeliest(rows: NDArray[np.float32], beta: float) -> None:
    before = rows.copy()
    kept = plausible(rows, beta)
    np.testing.assert_array_equal(rows, before)
    assert kept[np.arange(3), argmax_lowest(rows)].all()
    np.testing.assert_array_equal(kept, [plausible(row, beta) for row in rows])


@given(rows=tables(2, most=2000), k=st.integers(1, 50))
def test_top_k_is_the_head_of_a_stable_sort(rows: NDArray[np.float32], k: int) -> None:
    before = rows.copy()
    ids = top_k_ids(rows, k)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(ids, np.argsort(-rows, axis=-1, kind="stable")[:, :k])
    np.testing.assert_array_equal(ids[1], top_k_ids(rows[1], k))


@pytest.mark.parametrize("size", [127, 3000, 20_001])
@pytest.mark.parametrize("k", [1, 8, 20, 100])
def test_top_k_of_large_rows(size: int, k: int) -> None:
    random = np.random.default_rng(size)
    smooth = random.normal(0, 3, size).astype(np.float32)
    masked = np.where(random.random(size) < 0.001, smooth, np.float32(-INF))
    # Every leading token in one group is the worst case for the bound that spares a sort.
    column = smooth.copy()
    column[:: max(size // 64, 1)] += 100
    for row in (smooth, masked, column, np.round(smooth), np.zeros(size, np.float32)):
        expected = np.argsort(-row, kind="stable")[:k]
        np.testing.assert_array_equal(top_k_ids(row, k), expected)


def test_top_k_shapes() -> None:
    assert top_k_ids(f32(1.0, 2.0), 5).tolist() == [1, 0]
    assert top_k_ids(np.zeros((2, 3, 4), np.float32), 2).tolist() == [[[0, 1]] * 3] * 2
    assert top_k_ids(f32(1.0), 0).size == 0


def test_refusal_shift_by_hand() -> None:
    logits = f32(1.0, 2.0, 3.0, 4.0)
    assert refusal_shift(logits, [0, 2, 2], [3, 2, 1], 1.5).tolist() == [1.0, 2.0, 4.5, 4.0]
    assert refusal_shift(logits, [], [1], 1.0).tolist() == logits.tolist()


@given(data=st.data(), rows=tables(1), amount=st.floats(-20, 20, width=32))
def test_refusal_shift_moves_nothing_else(
    data: st.DataObject, rows: NDArray[np.float32], amount: float
) -> None:
    logits, before = rows[0], rows[0].copy()
    ids = st.lists(st.integers(0, len(logits) - 1))
    refusal, candidates = data.draw(ids), data.draw(ids)
    out = refusal_shift(logits, refusal, candidates, amount)
    assert logits.tobytes() == before.tobytes() and out.dtype == np.float32
    for token, (old, new) in enumerate(zip(logits, out, strict=True)):
        if amount != 0 and token in refusal and token in candidates:
            assert new == old + np.float32(amount)
        else:
            assert new.tobytes() == old.tobytes()


def test_p_unsafe_by_hand() -> None:
    logits = f32(math.log(3), 0.0, 100.0)
    assert p_unsafe(logits, 0, 1) == pytest.approx(0.25)
    assert p_unsafe(logits, 1, 0) == pytest.approx(0.75)
    assert p_unsafe(f32(0.0, 0.0), 0, 1) == 0.5
    assert p_unsafe(f32(-3e38, 3e38), 0, 1) == 1.0
    assert p_unsafe(f32(-3e38, 3e38), 1, 0) == 0.0


@pytest.mark.parametrize(
    ("safe", "unsafe", "expected"), [(-INF, 0.0, 1.0), (0.0, -INF, 0.0), (-INF, -3e38, 1.0)]
)
def test_p_unsafe_with_one_token_excluded(safe: float, unsafe: float, expected: float) -> None:
    assert p_unsafe(f32(safe, unsafe), 0, 1) == expected


@pytest.mark.parametrize(
    ("safe", "unsafe"), [(-INF, -INF), (math.nan, 0.0), (0.0, math.nan), (INF, 0.0), (0.0, INF), (INF, INF)]
)
def test_p_unsafe_that_is_not_defined(safe: float, unsafe: float) -> None:
    assert math.isnan(p_unsafe(f32(safe, unsafe), 0, 1))


@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32))
def test_p_unsafe_is_a_probability(safe: float, unsafe: float) -> None:
    p = p_unsafe(f32(safe, unsafe), 0, 1)
    assert 0 <= p <= 1
    assert p + p_unsafe(f32(safe, unsafe), 1, 0) == pytest.approx(1)
    if abs(unsafe - safe) > 1e-6:  # closer than that the two are as likely, to the last bit
        assert (p > 0.5) == (unsafe > safe)


def test_argmax_takes_the_lowest_of_equal_ones() -> None:
    assert argmax_lowest(f32(1.0, 3.0, 3.0)) == 1
    assert argmax_lowest(np.array([[0, 0], [1, 2]], np.float32)).tolist() == [0, 1]
