"""What counts as the same best token, and that a wrong graph cannot excuse itself with noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.contract import PRECISIONS

pytest.importorskip("onnx_ir")

from safecode_trt.export.agreement import MOST_NOISE, NEAR_TIE, measure_agreement

POSITIONS, VOCABULARY = 200, 300
seeds = st.integers(0, 10_000)


def logits(seed: int) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(seed))
    return draw.standard_normal((POSITIONS, VOCABULARY), dtype=np.float32) * np.float32(3)


@given(seeds)
def test_equal_logits_agree(seed: int) -> None:
    found = measure_agreement(logits(seed), logits(seed))
    assert (found.top1, found.top1_within_noise, found.noise) == (1.0, 1.0, 0.0)


@given(seeds, st.sampled_from([0.002, 0.03, 0.1]))
def test_noise_is_measured_and_excuses_near_ties_alone(seed: int, share: float) -> None:
    expected = logits(seed)
    found = measure_agreement(expected + logits(seed + 1) * np.float32(share), expected)
    assert found.noise == pytest.approx(share, rel=0.05)
    assert found.top1 <= found.top1_within_noise and found.top1_within_noise >= 0.97


def test_a_tie_ends_where_it_says() -> None:
    """One position of two differs; what it is behind decides."""
    expected = np.zeros((2, 1000), np.float32)
    expected[:, 0], expected[1, 1] = 1.0, 0.9
    found = expected.copy()
    found[1, 1] = 1.1
    noise = 0.2 / np.sqrt(2000)
    assert NEAR_TIE * noise < 0.1
    assert measure_agreement(found, expected).top1_within_noise == 0.5
    expected[1, 1] = 1 - 0.5 * NEAR_TIE * noise
    found[1, 1] = expected[1, 1] + 0.2
    assert measure_agreement(found, expected).top1_within_noise == 1.0


@given(seeds)
def test_a_wrong_graph_holds_in_no_precision(seed: int) -> None:
    found = measure_agreement(logits(seed + 1), logits(seed))
    assert found.noise > 2 * max(MOST_NOISE.values())
    assert not any(found.holds(precision) for precision in PRECISIONS)


def test_a_few_wrong_positions_do_not_hold() -> None:
    """Three per cent of them: the noise over all positions stays far below what they are off by."""
    expected = logits(0)
    found = expected + logits(1) * np.float32(0.02)
    found[::33] = logits(2)[::33]
    assert not measure_agreement(found, expected).holds("int8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_hold(value: float) -> None:
    broken = logits(0)
    broken[7, 7] = value
    with np.errstate(invalid="ignore"):
        found = measure_agreement(broken, logits(0))
    assert not any(found.holds(precision) for precision in PRECISIONS)
