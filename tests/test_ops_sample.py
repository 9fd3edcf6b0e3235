"""Sampling: filters against transformers and against their definition, draws against their distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from safecode_trt.config import SamplingParams
from safecode_trt.errors import SteeringError
from safecode_trt.ops.sample import (
    apply_min_p,
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    draw,
    make_sampler,
)

Row = NDArray[np.float32]
INF = math.inf

VALUES = st.one_of(st.sampled_from([-INF, -1.0, 0.0, 2.0]), st.floats(-40, 40, width=32))
ROWS = hnp.arrays(np.float32, st.integers(1, 80), elements=VALUES).filter(lambda row: row.max() > -INF)

FILTERS: dict[str, Callable[[Row], Row]] = {
    "repetition_penalty": lambda row: apply_repetition_penalty(row, [0, 0, 3, 200, -1], 1.7),
    "temperature": lambda row: apply_temperature(row, 0.3),
    "top_k": lambda row: apply_top_k(row, 5),
    "top_p": lambda row: apply_top_p(row, 0.8),
    "min_p": lambda row: apply_min_p(row, 0.2),
}


def f32(*values: float) -> Row:
    return np.array(values, np.float32)


def softmax(row: Row) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - float(row.max()))
    result: NDArray[np.float64] = weights / weights.sum()
    return result


@pytest.mark.parametrize("name", FILTERS)
@given(row=ROWS)
def test_every_filter_is_pure_and_leaves_a_token(name: str, row: Row) -> None:
    before = row.copy()
    out = FILTERS[name](row)
    assert row.tobytes() == before.tobytes() and not np.shares_memory(out, row)
    assert out.dtype == np.float32 and out.shape == row.shape
    assert math.isfinite(out.max())
    assert (out[row == -INF] == -INF).all()
    if name != "repetition_penalty":
        assert out[row.argmax()] == out.max()


@given(row=ROWS, k=st.integers(1, 100))
def test_top_k_keeps_the_kth_and_its_equals(row: Row, k: int) -> None:
    smallest = np.sort(row)[::-1][min(k, len(row)) - 1]
    np.testing.assert_array_equal(apply_top_k(row, k), np.where(row >= smallest, row, -INF))


@given(row=ROWS, p=st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_leading_set(row: Row, p: float) -> None:
    kept = np.flatnonzero(apply_top_p(row, p) > -INF)
    probabilities = softmax(row)
    order = np.argsort(-row, kind="stable")
    assert sorted(order[: len(kept)]) == kept.tolist()
    assert probabilities[kept].sum() >= p - 1e-5
    assert probabilities[order[: len(kept) - 1]].sum() < p + 1e-5


@pytest.mark.parametrize("size", [40, 600, 20_000])
def test_top_p_of_a_flat_row(size: int) -> None:
    kept = np.flatnonzero(apply_top_p(np.zeros(size, np.float32), 0.75) > -INF)
    np.testing.assert_array_equal(kept, np.arange(size * 3 // 4))


def test_repetition_penalty_by_hand() -> None:
    out = apply_repetition_penalty(f32(2.0, -2.0, 0.0, 3.0, -INF), [0, 1, 1, 2, 4, 9], 2.0)
    assert out.tolist() == [1.0, -4.0, 0.0, 3.0, -INF]
    assert apply_repetition_penalty(f32(1.0, 2.0), [], 2.0).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-3, 0.7, 3.0, 1e30])
def test_temperature_never_overflows(temperature: float) -> None:
    out = apply_temperature(f32(3e38, -3e38, 3e38, -INF), temperature)
    assert out[0] == out[2] == 0 and out[3] == -INF and not np.isnan(out).any()


def test_temperature_has_the_softmax_of_the_quotient() -> None:
    row = np.random.default_rng(0).normal(0, 3, 50).astype(np.float32)
    np.testing.assert_allclose(softmax(apply_temperature(row, 0.6)), softmax(row / 0.6), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [30, 5000])
def test_filters_agree_with_transformers(seed: int, size: int) -> None:
    torch = pytest.importorskip("torch")
    process: Any = pytest.importorskip("transformers.generation.logits_process")
    random = np.random.default_rng(seed)
    row = random.normal(0, 4, size).astype(np.float32)
    history = random.integers(0, size, 40).tolist()

    def theirs(processor: Any) -> Row:
        scores: Row = processor(torch.tensor([history]), torch.tensor(row[None]))[0].numpy()
        return scores

    penalty = process.RepetitionPenaltyLogitsProcessor(penalty=1.3)
    np.testing.assert_array_equal(apply_repetition_penalty(row, history, 1.3), theirs(penalty))
    for k in (1, 7, 50):
        np.testing.assert_array_equal(apply_top_k(row, k), theirs(process.TopKLogitsWarper(top_k=k)))
    for p in (0.05, 0.5, 0.9, 0.99):
        np.testing.assert_array_equal(apply_top_p(row, p), theirs(process.TopPLogitsWarper(top_p=p)))
    for p in (0.01, 0.2, 1.0):
        np.testing.assert_array_equal(apply_min_p(row, p), theirs(process.MinPLogitsWarper(min_p=p)))
    ours, quotient = apply_temperature(row, 0.7), theirs(process.TemperatureLogitsWarper(0.7))
    np.testing.assert_allclose(ours, quotient - quotient.max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 255, 256, 257, 3000])
def test_draw_inverts_the_cumulative_distribution(size: int) -> None:
    random = np.random.default_rng(size)
    row = random.normal(0, 3, size).astype(np.float32)
    row[random.random(size) < 0.3] = -INF
    row[size // 2] = 1.0
    cumulative = np.cumsum(softmax(row))
    for uniform in random.random(300):
        token = draw(row, float(uniform))
        assert row[token] > -INF
        assert cumulative[token] >= uniform - 1e-5
        assert token == 0 or cumulative[token - 1] <= uniform + 1e-5


def test_draw_at_the_ends() -> None:
    row = f32(-INF, 0.0, -INF, 0.0, -INF)
    assert draw(row, 0.0) == 1
    assert draw(row, 0.5) == 3
    assert draw(row, math.nextafter(1.0, 0.0)) == 3
    assert draw(np.concatenate([np.full(1000, -INF, np.float32), row]), math.nextafter(1.0, 0.0)) == 1003


def test_frequencies_follow_the_filtered_distribution() -> None:
    row = f32(1.0, 0.5, 0.0, -0.5, -1.0, -9.0)
    params = SamplingParams(temperature=0.8, top_k=4, top_p=0.95, seed=5)
    sampler = make_sampler(params)
    count = 20_000
    seen = np.bincount([sampler(row, []) for _ in range(count)], minlength=6)
    expected = count * softmax(apply_top_p(apply_top_k(apply_temperature(row, 0.8), 4), 0.95))
    live = expected > 0
    assert live.sum() == 4 and (seen[~live] == 0).all()
    # 99.9 % of all fair samplers stay below 16.3 with 3 degrees of freedom.
    assert (((seen - expected) ** 2)[live] / expected[live]).sum() < 16.3


def test_the_same_seed_draws_the_same_tokens() -> None:
    rows = np.random.default_rng(0).normal(0, 2, (40, 700)).astype(np.float32)

    def reply(seed: int) -> list[int]:
        sampler = make_sampler(SamplingParams(temperature=1.0, top_p=0.9, seed=seed))
        return [sampler(row, []) for row in rows]

    assert reply(3) == reply(3)
    assert reply(3) != reply(4)


def test_each_token_takes_one_number_of_the_generator() -> None:
    row = np.random.default_rng(0).normal(0, 2, 700).astype(np.float32)
    sampler = make_sampler(SamplingParams(temperature=1.0, seed=11))
    uniforms = np.random.Generator(np.random.PCG64(11)).random(20)
    assert [sampler(row, []) for _ in range(20)] == [draw(row, float(u)) for u in uniforms]


def test_the_sampler_is_its_operations_one_by_one() -> None:
    rows = np.random.default_rng(2).normal(0, 3, (30, 400)).astype(np.float32)
    params = SamplingParams(temperature=0.9, top_k=60, top_p=0.9, min_p=0.02, repetition_penalty=1.4, seed=8)
    sampler, random = make_sampler(params), np.random.Generator(np.random.PCG64(8))
    history: list[int] = [1, 2, 3]
    for row in rows:
        step = apply_repetition_penalty(row, history, 1.4)
        step = apply_min_p(apply_top_p(apply_top_k(apply_temperature(step, 0.9), 60), 0.9), 0.02)
        token = sampler(row, history)
        assert token == draw(step, random.random())
        history.append(token)


@given(row=ROWS)
def test_greedy_takes_the_lowest_of_the_likeliest(row: Row) -> None:
    before = row.copy()
    token = make_sampler(SamplingParams(top_k=3, top_p=0.1, min_p=0.9, seed=1))(row, [])
    assert token == int(np.flatnonzero(row == row.max())[0])
    assert row.tobytes() == before.tobytes()


def test_greedy_obeys_the_repetition_penalty() -> None:
    sampler = make_sampler(SamplingParams(repetition_penalty=2.0))
    assert sampler(f32(3.0, 2.0), []) == 0
    assert sampler(f32(3.0, 2.0), [0]) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "row", [f32(1.0, math.nan), f32(INF, 0.0), f32(-INF, -INF)], ids=["nan", "inf", "none"]
)
def test_broken_logits_are_refused(temperature: float, row: Row) -> None:
    with pytest.raises(SteeringError):
        make_sampler(SamplingParams(temperature=temperature))(row, [])
    with pytest.raises(SteeringError):
        make_sampler(SamplingParams(temperature=temperature, repetition_penalty=1.2))(row, [0])


def test_a_penalty_that_breaks_the_logits_is_refused() -> None:
    with pytest.raises(SteeringError):
        make_sampler(SamplingParams(repetition_penalty=1e-45))(f32(5.0, 1.0), [0])
