"""The verdict of the model itself: calibrated, trusted or refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.calibration import Calibration, Reliability
from safecode_trt.config import PAPER
from safecode_trt.errors import SteeringError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy import Verdict, make_policy
from safecode_trt.policy.modulation import shift_amount
from safecode_trt.policy.verdict import read_verdict
from tests.test_policy import DEFAULTS, INF, ROWS, SAFE, UNSAFE, begin, judge, settings


@pytest.mark.parametrize(("p", "unsafe"), [(0.7, True), (0.69, False), (0.999, True), (0.001, False)])
def test_verdict_and_threshold(p: float, unsafe: bool) -> None:
    verdict = read_verdict(judge(p), DEFAULTS, threshold=0.7 - 1e-6)
    assert verdict.p_unsafe == pytest.approx(p, abs=1e-6)
    assert verdict.unsafe is unsafe


def test_a_verdict_on_the_threshold_is_unsafe() -> None:
    assert read_verdict(judge(0.5), DEFAULTS).unsafe


def calibrated(temperature: float, threshold: float) -> SafeCodeDefaults:
    curve = Reliability(accuracy=0.9, calibration_error=0.1, bins=())
    found = Calibration(
        judge="self",
        temperature=temperature,
        threshold=threshold,
        items=50,
        unsafe_items=20,
        items_sha256="0" * 64,
        before=curve,
        after=curve,
    )
    return dataclasses.replace(DEFAULTS, calibration=found)


def test_a_calibrated_verdict() -> None:
    verdict = read_verdict(judge(0.9), calibrated(2.0, 0.8))
    assert verdict.p_unsafe == pytest.approx(0.75) and verdict.threshold == 0.8 and not verdict.unsafe
    assert read_verdict(judge(0.9), calibrated(2.0, 0.8), threshold=0.7).unsafe


@given(st.floats(0.001, 0.999), st.floats(0.02, 50))
def test_a_temperature_leaves_the_order_of_verdicts(p: float, temperature: float) -> None:
    verdict = read_verdict(judge(p), calibrated(temperature, 0.5))
    assert 0 <= verdict.p_unsafe <= 1
    if abs(p - 0.5) > 1e-6:
        assert verdict.unsafe == (p > 0.5)


def test_a_judge_that_says_something_else_gives_no_verdict() -> None:
    logits = judge(0.9)
    logits[0] = 12.0
    assert read_verdict(logits, DEFAULTS).mass == pytest.approx(6.14e-5, rel=0.01)
    with pytest.raises(SteeringError, match="together, below the floor"):
        read_verdict(logits, dataclasses.replace(DEFAULTS, verdict_floor=0.5))
    assert read_verdict(judge(0.9), dataclasses.replace(DEFAULTS, verdict_floor=0.5)).unsafe


@pytest.mark.parametrize(
    ("token", "value"),
    [(SAFE, math.nan), (UNSAFE, math.nan), (0, math.nan), (SAFE, INF), (UNSAFE, INF), (0, INF)],
)
def test_no_verdict_from_broken_logits(token: int, value: float) -> None:
    logits = judge(0.1)
    logits[token] = value
    with pytest.raises(SteeringError):
        make_policy("safecode", DEFAULTS).begin({"real": ROWS[0], "judge": logits})


def test_no_verdict_when_both_tokens_are_excluded() -> None:
    logits = judge(0.1)
    logits[[SAFE, UNSAFE]] = -INF
    with pytest.raises(SteeringError, match="verdict"):
        make_policy("safecode", DEFAULTS).begin({"real": ROWS[0], "judge": logits})


def test_no_verdict_without_the_judge() -> None:
    with pytest.raises(SteeringError, match="judge"):
        make_policy("safecode", DEFAULTS).begin({"real": ROWS[0]})


@pytest.mark.parametrize(
    "ids", [{"safe_token_id": -1}, {"unsafe_token_id": 8}, {"refusal_token_ids": (1, 8)}]
)
def test_tokens_outside_the_vocabulary(ids: dict[str, Any]) -> None:
    with pytest.raises(SteeringError, match="vocabulary"):
        make_policy("safecode", dataclasses.replace(DEFAULTS, **ids)).begin(
            {"real": ROWS[0], "judge": judge(0.1)}
        )


PROBABILITIES = st.floats(0, 1)


def soft_shift(p: float, threshold: float) -> float:
    verdict = Verdict(p_unsafe=p, threshold=threshold, source="test")
    return shift_amount(verdict, dataclasses.replace(PAPER, verdict="soft", shift=3.0))


@given(PROBABILITIES, PROBABILITIES)
def test_a_soft_shift_has_the_sign_of_its_verdict(p: float, threshold: float) -> None:
    amount = soft_shift(p, threshold)
    assert -3 <= amount <= 3
    assert (amount >= 0) == (p >= threshold)
    assert (amount == 0) == (p == threshold < 1)


@given(PROBABILITIES, PROBABILITIES, PROBABILITIES)
def test_a_soft_shift_grows_with_p(first: float, second: float, threshold: float) -> None:
    low, high = sorted((first, second))
    assert soft_shift(low, threshold) <= soft_shift(high, threshold)


@given(PROBABILITIES)
def test_a_soft_shift_around_one_half(p: float) -> None:
    assert soft_shift(p, 0.5) == 3 * (2 * p - 1)


def test_soft_shifts_by_hand() -> None:
    assert [soft_shift(p, 0.8) for p in (0.0, 0.4, 1.0)] == [-3.0, -1.5, 3.0]
    assert soft_shift(0.9, 0.8) == pytest.approx(1.5)
    assert [soft_shift(p, 0.0) for p in (0.0, 0.5, 1.0)] == [0.0, 1.5, 3.0]
    assert [soft_shift(p, 1.0) for p in (0.0, 0.5, 1.0)] == [-3.0, -1.5, 3.0]


def test_a_calibrated_threshold_decides_the_direction_of_a_soft_shift() -> None:
    """0.9 is 0.75 at temperature 2: unsafe for most, safe for this threshold of 0.8."""
    policy = make_policy("safecode", calibrated(2.0, 0.8), settings=settings(verdict="soft", alpha=0.0))
    row = policy.begin({"real": ROWS[0], "judge": judge(0.9)}).combine(0, ROWS[:1]).logits
    assert row[1] < ROWS[0, 1]


def test_verdict_is_kept_by_the_steering() -> None:
    verdict = begin(0.9).verdict
    assert verdict is not None and verdict.unsafe and verdict.source == "self"
    assert begin(shift=0.0).verdict is None
