"""The fused step: kernels.cu, run on the CPU, against the policy and the sampler in numpy."""

from __future__ import annotations

import ctypes
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.config import SamplingParams
from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.ops.fused import (
    MAX_VOCABULARY,
    SHIFT_MOST,
    FusedSettings,
    make_step,
    refusal_bits,
    why_not_fused,
)
from safecode_trt.ops.sample import (
    make_sampler,
)
from tests.kernel_cases import (
    KINDS,
    check_greedy,
    make_refusal,
    make_rows,
    may_need_the_host,
    on_host,
    tokens_near,
    traced,
    uniform_of,
)
from tests.kernel_emulation import NO_IDS, EmulatedStep

INF = math.inf
SIZES = (1, 2, 7, 63, 64, 65, 300, 1023, 1024, 1025, 2500)
CASES = st.tuples(st.sampled_from(KINDS), st.sampled_from(SIZES), st.integers(0, 999))
ALPHAS = st.sampled_from([0.0, 1e-50, 0.3, 1.0, 5.0])
BETAS = st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0])
AMOUNTS = st.sampled_from([0.0, 1.0, -1.0, 30.0, -30.0, 0.37])
CANDIDATES = st.sampled_from([0, 1, 2, 20, SHIFT_MOST])
STEPS = st.builds(
    FusedSettings,
    form=st.sampled_from([None, "difference", "vcd"]),
    alpha=ALPHAS,
    beta=BETAS,
    shift_top_k=CANDIDATES,
    amount=AMOUNTS,
)


@given(case=CASES, step=STEPS)
def test_greedy_step_is_the_policys_bit_for_bit(
    kernels: ctypes.CDLL, case: tuple[str, int, int], step: FusedSettings
) -> None:
    logits, refusal_ids = make_rows(*case), make_refusal(case[1], case[2])
    emulated = EmulatedStep(kernels, case[1], refusal_ids)
    check_greedy(lambda: emulated.run(logits, step), logits, step, refusal_ids)


SAMPLINGS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-45, 0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 64, 5000]),
    top_p=st.sampled_from([0.01, 0.5, 0.75, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 1.0]),
    seed=st.integers(0, 999),
)


@given(case=CASES, step=STEPS, sampling=SAMPLINGS)
def test_sampled_step_is_the_samplers(
    kernels: ctypes.CDLL, case: tuple[str, int, int], step: FusedSettings, sampling: SamplingParams
) -> None:
    logits, refusal_ids = make_rows(*case), make_refusal(case[1], case[2])
    step, uniform = replace(step, sampling=sampling), uniform_of(sampling)
    try:
        combined = on_host(logits, step, refusal_ids)
    except SteeringError:
        return  # held by the greedy twin of this test
    choice = EmulatedStep(kernels, case[1], refusal_ids).run(logits, step, uniform=uniform)
    assert [asdict(token) for token in choice.candidates] == traced(combined)
    if choice.token_id is not None:
        assert choice.token_id in tokens_near(combined.logits, sampling, uniform)
    else:
        assert may_need_the_host(logits, step, refusal_ids, combined.logits)


@pytest.mark.parametrize("filters", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05, "top_k": 50}])
@pytest.mark.parametrize("size", [50, 3000])
def test_the_same_seed_is_the_same_reply(kernels: ctypes.CDLL, size: int, filters: dict[str, Any]) -> None:
    sampling = SamplingParams(temperature=0.8, seed=3, **filters)
    step = FusedSettings(form="vcd", alpha=0.5, beta=0.05, shift_top_k=20, amount=2.0, sampling=sampling)
    sampler, random = make_sampler(sampling), np.random.Generator(np.random.PCG64(3))
    emulated = EmulatedStep(kernels, size, make_refusal(size, 1))
    for seed in range(20):
        logits = make_rows("spread", size, seed)
        expected = sampler(on_host(logits, step, make_refusal(size, 1)).logits, [])
        assert emulated.run(logits, step, uniform=random.random()).token_id == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5}, {"temperature": 0.9, "top_p": 0.6}])
def test_no_order_of_blocks_and_threads_matters(
    kernels: ctypes.CDLL, kind: str, sampling: dict[str, Any]
) -> None:
    size = 3100
    emulated = EmulatedStep(kernels, size, make_refusal(size, 0))
    step = FusedSettings(
        form="difference", alpha=0.3, shift_top_k=20, amount=3.0, sampling=SamplingParams(**sampling)
    )
    records = {
        emulated.record(make_rows(kind, size, 8), step, uniform=0.6, order=order).tobytes()
        for order in range(5)
    }
    assert len(records) == 1


def test_the_vocabulary_of_a_large_model(kernels: ctypes.CDLL) -> None:
    size = 151_936
    logits, refusal_ids = make_rows("half", size, 4), make_refusal(size, 4)
    emulated = EmulatedStep(kernels, size, refusal_ids)
    step = FusedSettings(form="difference", alpha=0.3, shift_top_k=20, amount=-4.0)
    combined = on_host(logits, step, refusal_ids)
    check_greedy(lambda: emulated.run(logits, step), logits, step, refusal_ids)
    sampling = SamplingParams(temperature=1.3)
    drawn = emulated.run(logits, replace(step, sampling=sampling), uniform=0.314159)
    assert drawn.token_id in tokens_near(combined.logits, sampling, 0.314159)


def test_the_largest_vocabulary_at_its_worst(kernels: ctypes.CDLL) -> None:
    # Equal logits: the leading tokens are all in the first tile, and every tile has a full list.
    emulated = EmulatedStep(kernels, MAX_VOCABULARY, np.array([2, 5]))
    logits = np.zeros((1, MAX_VOCABULARY), np.float32)
    choice = emulated.run(logits, FusedSettings(shift_top_k=4, amount=1.0))
    assert [token.token_id for token in choice.candidates] == [2, 0, 1, 3, 4, 5, 6, 7]
    sampling = SamplingParams(temperature=1.0, top_p=0.5)
    assert emulated.run(logits, FusedSettings(sampling=sampling), uniform=0.5).token_id is None


def test_every_half_is_its_float(kernels: ctypes.CDLL) -> None:
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16)
    ours = np.array([kernels.half_logit(ctypes.c_ushort(bits)) for bits in range(65_536)], np.float32)
    np.testing.assert_array_equal(ours, halves.astype(np.float32))
    assert (np.signbit(ours) == np.signbit(halves))[~np.isnan(ours)].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("broken", [math.nan, -math.nan, INF, None], ids=["nan", "-nan", "inf", "none"])
def test_broken_logits_are_refused(kernels: ctypes.CDLL, dtype: Any, row: int, broken: float | None) -> None:
    logits = make_rows("spread", 1500, 0, rows=3).astype(dtype)
    emulated = EmulatedStep(kernels, 1500)
    logits[row, :-1] = -INF
    logits[row, -1] = -INF if broken is None else broken
    with pytest.raises(SteeringError, match="model's logits"):
        emulated.run(logits, FusedSettings())
    logits[row, 7] = 1.0  # and where other tokens are as they should be
    if broken is not None:
        with pytest.raises(SteeringError, match="model's logits"):
            emulated.run(logits, FusedSettings(sampling=SamplingParams(temperature=1.0)))


def test_stages_that_break_the_logits_are_refused(kernels: ctypes.CDLL) -> None:
    emulated = EmulatedStep(kernels, 3, np.array([1]))
    only_reference = np.array([[1, 0, 0], [-INF, 0, 0]], np.float32)
    large = np.array([[0, 3e38, 1]], np.float32)
    for logits, step in (
        (only_reference, FusedSettings(form="difference", alpha=1.0)),
        (large, FusedSettings(shift_top_k=3, amount=3e38)),
    ):
        with pytest.raises(SteeringError):
            on_host(logits, step, np.array([1]))
        with pytest.raises(SteeringError, match="steered logits"):
            emulated.run(logits, step)


def test_what_the_device_leaves_to_the_host() -> None:
    assert why_not_fused(FusedSettings(shift_top_k=SHIFT_MOST), MAX_VOCABULARY, 2) is None
    penalty = SamplingParams(repetition_penalty=1.1)
    for step, vocabulary in (
        (FusedSettings(), MAX_VOCABULARY + 1),
        (FusedSettings(shift_top_k=SHIFT_MOST + 1), 100),
        (FusedSettings(sampling=penalty), 100),
    ):
        assert why_not_fused(step, vocabulary, 2)
        with pytest.raises(ConfigError, match="let the host compute it"):
            make_step(step, rows=2, vocabulary=vocabulary, half=False, uniform=0.0)


@pytest.mark.parametrize(
    ("step", "rows"),
    [(FusedSettings(form="vcd"), 1), (FusedSettings(), 4), (FusedSettings(amount=1e39), 1)],
    ids=["one row", "four rows", "infinite shift"],
)
def test_impossible_steps_are_refused(step: FusedSettings, rows: int) -> None:
    assert why_not_fused(step, 10, rows)
    with pytest.raises(ConfigError):
        make_step(step, rows=rows, vocabulary=10, half=False, uniform=0.0)


def test_refusal_bits() -> None:
    assert refusal_bits(np.array([0, 33]), 40).tolist() == [1, 2]
    assert refusal_bits(NO_IDS, 33).tolist() == [0, 0]
    for ids in ([-1], [40]):
        with pytest.raises(ConfigError, match="refusal tokens"):
            refusal_bits(np.array(ids), 40)
