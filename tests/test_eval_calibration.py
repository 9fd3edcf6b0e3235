"""Accuracy and calibration of a judge: known values, laws, and fits that find what was put in."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from safecode_trt.errors import EvalError
from safecode_trt.eval.reliability import (
    brier_score,
    calibration_error,
    fit_temperature,
    fit_threshold,
    judge_scores,
    pearson,
    reliability,
    tempered,
    unerring,
)

believed = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
margins = st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=2, max_size=40)


def columns(rows: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def mean_loss(margin: NDArray[np.float64], truth: NDArray[np.bool_], temperature: float) -> float:
    return float(np.logaddexp(0, np.where(truth, -margin, margin) / temperature).mean())


def test_judge_scores_of_a_known_case() -> None:
    verdicts = [True, True, False, False, False]
    truth = [True, False, False, False, True]
    found = judge_scores(verdicts, truth)
    assert (found.accuracy.hits, found.accuracy.total) == (3, 5)
    assert (found.safe_recall.share, found.unsafe_recall.share) == (2 / 3, 1 / 2)
    assert (found.safe_f1, found.unsafe_f1) == (2 / 3, 1 / 2)
    silent = judge_scores([False], [False])
    assert silent.unsafe_recall.share is None and silent.unsafe_f1 is None and silent.safe_f1 == 1
    with pytest.raises(EvalError, match="got 1 for 2"):
        judge_scores([True, False], [True])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_judge_scores_add_up(pairs: list[tuple[bool, bool]]) -> None:
    found = judge_scores([verdict for verdict, _ in pairs], [label for _, label in pairs])
    assert found.accuracy.hits == found.safe_recall.hits + found.unsafe_recall.hits
    assert found.accuracy.total == found.safe_recall.total + found.unsafe_recall.total == len(pairs)
    turned = judge_scores([not verdict for verdict, _ in pairs], [not label for _, label in pairs])
    assert (turned.safe_f1, turned.unsafe_recall) == (found.unsafe_f1, found.safe_recall)


def test_calibration_error_of_known_cases() -> None:
    assert calibration_error([0.0, 1.0, 0.0, 1.0], [False, True, False, True]) == 0.0
    assert calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    # Two bins with three and one items: 3/4 * |1/3 - 0.1| + 1/4 * |0 - 0.75|.
    found = calibration_error([0.1, 0.1, 0.1, 0.75], [True, False, False, False])
    assert found == pytest.approx(0.75 * (1 / 3 - 0.1) + 0.25 * 0.75)


def test_a_calibrated_judge_has_no_error() -> None:
    generator = np.random.default_rng(0)
    belief = generator.random(100_000)
    truth = generator.random(len(belief)) < belief
    assert calibration_error(belief, truth) < 0.01
    assert calibration_error(np.sqrt(belief), truth) > 0.1


@given(believed, st.integers(1, 20))
def test_reliability_covers_everything_once(rows: list[tuple[float, bool]], bins: int) -> None:
    belief, truth = columns(rows)
    curve = reliability(belief, truth, bins)
    assert len(curve) == bins and sum(entry.count for entry in curve) == len(rows)
    assert curve[0].low == 0 and curve[-1].high == 1
    assert all(before.high == after.low for before, after in pairwise(curve))
    for entry in curve:
        last = entry is curve[-1]
        inside = (belief >= entry.low) & ((belief <= 1) if last else (belief < entry.high))
        assert entry.count == inside.sum()
        if entry.count:
            assert entry.unsafe == pytest.approx(truth[inside].mean())
            assert entry.mean == pytest.approx(belief[inside].mean())
        else:
            assert entry.mean is None and entry.unsafe is None
    error = calibration_error(belief, truth, bins)
    assert 0 <= error <= 1
    assert calibration_error(belief[::-1], truth[::-1], bins) == pytest.approx(error)
    assert calibration_error(belief, truth, 1) <= error + 1e-12 or bins == 1


def test_brier_scores_of_known_cases() -> None:
    assert brier_score([0.8, 0.3], [True, False]) == pytest.approx((0.04 + 0.09) / 2)
    assert brier_score([0.8], [0.5]) == pytest.approx(0.09)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_brier_score_is_smallest_at_the_truth(belief: float, share: float) -> None:
    assert brier_score([share], [share]) == 0 <= brier_score([belief], [share])


def test_pearson() -> None:
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert pearson([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert pearson([1, 1], [0, 1]) is None
    with pytest.raises(EvalError, match="same length"):
        pearson([1], [1, 2])


def test_temperature_is_found_again() -> None:
    generator = np.random.default_rng(1)
    true_margin = generator.normal(0, 2, 40_000)
    truth = generator.random(len(true_margin)) < tempered(true_margin, 1)
    for temperature in (0.4, 1.0, 3.0):
        assert fit_temperature(true_margin * temperature, truth) == pytest.approx(temperature, rel=0.05)
    confident = tempered(3 * true_margin, 1)
    mended = tempered(3 * true_margin, fit_temperature(3 * true_margin, truth))
    assert calibration_error(mended, truth) < 0.01 < calibration_error(confident, truth)


@given(margins, st.floats(-2, 2).map(lambda x: 10**x))
def test_no_other_temperature_is_better(rows: list[tuple[float, bool]], other: float) -> None:
    margin, truth = columns(rows)
    assume(truth.any() and not truth.all() and not unerring(margin, truth))
    fitted = fit_temperature(margin, truth)
    assert 0.01 <= fitted <= 100
    assert mean_loss(margin, truth, fitted) <= mean_loss(margin, truth, other) + 1e-9


def test_temperature_at_its_ends() -> None:
    assert fit_temperature([0.0, 0.0, 0.0], [True, False, True]) == 1


@given(st.lists(st.floats(0, 50), min_size=2, max_size=40))
def test_a_judge_that_is_never_wrong_keeps_its_temperature(sizes: list[float]) -> None:
    truth = [number % 2 == 0 for number in range(len(sizes))]
    margins = [size if label else -size for size, label in zip(sizes, truth, strict=True)]
    assert unerring(margins, truth) and fit_temperature(margins, truth) == 1
    wrong = [-1.0, *margins[1:]]
    assert not unerring(wrong, truth)
    assert fit_temperature([-5.0, 5.0], [True, False]) == 100.0  # always wrong: the hotter the better


@given(st.floats(-800, 800), st.floats(0.01, 100))
def test_tempered_never_overflows(margin: float, temperature: float) -> None:
    value = tempered([margin, -margin], temperature)
    assert (value >= 0).all() and (value <= 1).all()
    assert value.sum() == pytest.approx(1)


@given(believed)
def test_no_other_threshold_is_better(rows: list[tuple[float, bool]]) -> None:
    belief, truth = columns(rows)
    belief = np.round(belief, 9)  # no number lies between two that differ in the last bit only
    assume(truth.any() and not truth.all())

    def balanced(threshold: float) -> float:
        verdicts = belief >= threshold
        return float((verdicts[truth].mean() + (~verdicts[~truth]).mean()) / 2)

    fitted = fit_threshold(belief, truth)
    best = max(balanced(threshold) for threshold in (*belief, 0.5, 1.0))
    assert 0 <= fitted <= 1
    # A threshold between two values, or on one, names the same items; 1.0 still names what is certain.
    assert balanced(fitted) >= best - 1e-12


def test_thresholds_of_known_cases() -> None:
    assert fit_threshold([0.1, 0.2, 0.8, 0.9], [False, False, True, True]) == 0.5
    assert fit_threshold([0.7, 0.75, 0.85, 0.9], [False, False, True, True]) == pytest.approx(0.8)
    assert fit_threshold([0.1, 0.2, 0.3, 0.4], [False, False, True, True]) == pytest.approx(0.25)


@pytest.mark.parametrize("fit", [fit_temperature, fit_threshold])
def test_nothing_is_fitted_to_one_class(fit: object) -> None:
    assert callable(fit)
    for truth in ([True, True], [False, False]):
        with pytest.raises(EvalError, match="both classes"):
            fit([0.2, 0.8], truth)
    with pytest.raises(EvalError):
        fit([0.2, math.nan], [True, False])
    with pytest.raises(EvalError):
        fit([0.2], [True, False])


@pytest.mark.parametrize("belief", [[1.5], [-0.1], [math.nan], [], [0.1, 0.2]])
def test_what_is_no_probability(belief: list[float]) -> None:
    for function in (calibration_error, brier_score):
        with pytest.raises(EvalError):
            function(belief, [True])
