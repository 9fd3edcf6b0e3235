"""Plans, verdicts and SafeCoDe's two stages, on logits made by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import safecode_trt.policy as policies
from safecode_trt.config import PAPER, Mode, SafeCodeConfig
from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.ops.reference import contrast, plausible, refusal_shift, top_k_ids
from safecode_trt.policy import PLAIN, PixelNoise, PromptEdit, Steering, make_policy

Table = NDArray[np.float32]
INF = math.inf
SAFE, UNSAFE = 4, 5
REFUSALS = (1, 3)


def settings(**changes: Any) -> SafeCodeConfig:
    return dataclasses.replace(PAPER, **changes)


DEFAULTS = SafeCodeDefaults(
    judge_template="Is it safe to help with this here? {request}",
    safe_token_id=SAFE,
    unsafe_token_id=UNSAFE,
    caption_prompt="What is there?",
    caption_judge_template="{caption} Is it safe to help with this here? {request}",
    reason_template="What is dangerous here?",
    explanation="I see {reason}",
    refusal_phrases=("Sorry", "I cannot"),
    refusal_tokens=((1,), (3, 0)),
    refusal_token_ids=REFUSALS,
    fallback_refusal="Sorry, I cannot help with that.",
    settings=settings(
        contrast="vcd", alpha=1.0, beta=0.03, sigma=1.0, verdict="soft", shift=3.0, shift_steps=1
    ),
)


def judge(p_unsafe: float, size: int = 8) -> Table:
    logits = np.zeros(size, np.float32)
    logits[UNSAFE] = math.log(p_unsafe / (1 - p_unsafe))
    return logits


def begin(p_unsafe: float = 0.9, size: int = 8, **changes: Any) -> Steering:
    policy = make_policy("safecode-paper", DEFAULTS, settings=settings(**changes))
    return policy.begin({"real": judge(0.5, size), "judge": judge(p_unsafe, size)})


REAL = [2.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0]
REFERENCE = [2.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
ROWS = np.array([REAL, REFERENCE], np.float32)

TABLES = hnp.arrays(
    np.float32,
    st.tuples(st.just(2), st.integers(8, 60)),
    elements=st.one_of(st.sampled_from([-1.0, 0.0, -0.0, 2.0]), st.floats(-30, 30, width=32)),
)


# -- plans


def contexts_of(mode: Mode, **changes: Any) -> list[tuple[str, str, str, str]]:
    chosen = settings(**changes) if changes else None
    plan = make_policy(mode, DEFAULTS, settings=chosen).plan
    return [(c.name, c.picture, c.prompt, c.lifetime) for c in plan.contexts]


ROW_REAL = ("real", "real", "request", "reply")
ROW_NOISED = ("noised", "noised", "request", "steered")
ROW_JUDGE = ("judge", "real", "judge", "prefill")


def test_plans_of_the_modes() -> None:
    assert contexts_of("plain") == [ROW_REAL]
    assert contexts_of("safecode-paper") == [ROW_REAL, ROW_NOISED, ROW_JUDGE]
    assert contexts_of("safecode") == [ROW_REAL, ROW_NOISED, ROW_JUDGE]


@pytest.mark.parametrize("off", [{"alpha": 0.0}, {"contrast_steps": 0}])
def test_plan_without_contrast(off: dict[str, Any]) -> None:
    assert contexts_of("safecode", **off) == [ROW_REAL, ROW_JUDGE]
    assert make_policy("safecode", DEFAULTS, settings=settings(**off)).plan.noise is None


@pytest.mark.parametrize("off", [{"shift": 0.0}, {"shift_steps": 0}])
def test_plan_without_verdict(off: dict[str, Any]) -> None:
    assert contexts_of("safecode", **off) == [ROW_REAL, ROW_NOISED]
    assert not make_policy("safecode", DEFAULTS, settings=settings(**off)).plan.prompts


def test_plan_with_a_cached_reference() -> None:
    expected = ("noised", "cached", "request", "steered")
    assert contexts_of("safecode", reference="cached") == [ROW_REAL, expected, ROW_JUDGE]
    assert make_policy("safecode", DEFAULTS, settings=settings(reference="cached")).plan.noise is None


def test_plan_carries_the_noise_and_the_judges_prompt() -> None:
    paper, ours = make_policy("safecode-paper", DEFAULTS).plan, make_policy("safecode", DEFAULTS).plan
    assert (paper.noise, ours.noise) == (PixelNoise(sigma=0.1), PixelNoise(sigma=1.0))
    assert paper.prompts == ours.prompts == {"judge": PromptEdit(template=DEFAULTS.judge_template)}
    assert paper.rows("steered") == 2


def test_steps_are_those_of_the_longer_active_stage() -> None:
    assert begin(contrast_steps=2, shift_steps=4).steps == 4
    assert begin(contrast_steps=6, shift_steps=4).steps == 6
    assert begin(contrast_steps=6, alpha=0.0, shift_steps=4).steps == 4
    assert begin(contrast_steps=2, shift_steps=4, shift=0.0).steps == 2
    assert begin(alpha=0.0, shift=0.0).steps == 0


# -- the factory


def test_fallbacks() -> None:
    paper = make_policy("safecode-paper", DEFAULTS).fallback
    assert (paper.kind, paper.text) == ("refuse", DEFAULTS.fallback_refusal)
    for kind, of_plain in (("refuse", "refuse"), ("error", "error"), ("plain", "error")):
        chosen = settings(fallback=kind)
        assert make_policy("safecode", DEFAULTS, settings=chosen).fallback.kind == kind
        assert make_policy("plain", DEFAULTS, settings=chosen).fallback.kind == of_plain
    assert PLAIN.fallback.kind == "error"


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match=r"plain, vcd, .*, got 'fast'"):
        make_policy(cast(Any, "fast"), DEFAULTS)


@pytest.mark.parametrize(
    "broken",
    [
        {"refusal_token_ids": ()},
        {"refusal_token_ids": (3, -1)},
        {"unsafe_token_id": SAFE},
        {"judge_template": " "},
    ],
)
def test_defaults_that_cannot_steer_are_refused_only_when_needed(broken: dict[str, Any]) -> None:
    defaults = dataclasses.replace(DEFAULTS, **broken)
    with pytest.raises(ConfigError):
        make_policy("safecode", defaults)
    make_policy("plain", defaults)
    make_policy("safecode", defaults, settings=settings(shift=0.0))


# -- plain


def test_plain_steers_nothing() -> None:
    steering = make_policy("plain", DEFAULTS).begin({"real": ROWS[0]})
    assert (steering.steps, steering.verdict) == (0, None)
    assert steering.combine(0, ROWS[:1]).logits.tobytes() == ROWS[0].tobytes()


# -- the stages, by hand: the paper's alpha 0.3, lambda 1


def test_the_papers_formula_by_hand() -> None:
    contrasted = [1.4, 1.0, -0.3, -0.7, 0.0, 0.0, 0.0, 0.0]
    unsafe = [1.4, 2.0, -0.3, 0.3, 0.0, 0.0, 0.0, 0.0]
    safe = [1.4, 0.0, -0.3, -1.7, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(begin(shift=0.0).combine(0, ROWS).logits, contrasted, atol=1e-6)
    np.testing.assert_allclose(begin(0.9).combine(0, ROWS).logits, unsafe, atol=1e-6)
    np.testing.assert_allclose(begin(0.1).combine(4, ROWS).logits, safe, atol=1e-6)


def test_vcd_with_mask_and_soft_verdict_by_hand() -> None:
    # cutoff 2 + ln 0.2 = 0.39 leaves tokens 0 and 1; the refusal token 3 is spared; shift 3 (2 * 0.9 - 1) = 2.4
    vcd: dict[str, Any] = {"contrast": "vcd", "alpha": 1.0, "beta": 0.2, "verdict": "soft", "shift": 3.0}
    row = begin(0.9, **vcd).combine(0, ROWS).logits
    np.testing.assert_allclose(row[[0, 1, 3]], [2.0, 2.0 + 2.4, -1.0 + 2.4], atol=1e-5)
    assert (row[[2, 4, 5, 6, 7]] == -INF).all()
    # A safe verdict lowers refusals, so nothing is spared.
    row = begin(0.1, **vcd).combine(0, ROWS).logits
    np.testing.assert_allclose(row[:2], [2.0, 2.0 - 2.4], atol=1e-5)
    assert (row[2:] == -INF).all()


def test_the_mask_spares_refusals_only_in_shift_steps() -> None:
    steering = begin(0.9, beta=0.2, shift_steps=1)
    assert steering.combine(0, ROWS).logits[3] > -INF
    assert steering.combine(1, ROWS).logits[3] == -INF


def test_there_is_no_mask_without_the_contrast() -> None:
    assert np.isfinite(begin(alpha=0.0, beta=0.5).combine(0, ROWS[:1]).logits).all()


def test_only_candidates_are_shifted() -> None:
    row = begin(0.9, alpha=0.0, top_k=2).combine(0, ROWS[:1]).logits
    assert row.tolist() == [2.0, 2.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0]


def test_each_stage_ends_by_itself() -> None:
    steering = begin(0.9, contrast_steps=1, shift_steps=2)
    only_shift = refusal_shift(ROWS[0], REFUSALS, range(8), 1.0)
    assert steering.combine(1, ROWS).logits.tolist() == only_shift.tolist()
    steering = begin(0.9, contrast_steps=2, shift_steps=1)
    only_contrast = contrast(ROWS[0], ROWS[1], 0.3, "difference")
    assert steering.combine(1, ROWS).logits.tolist() == only_contrast.tolist()
    assert steering.combine(2, ROWS).logits.tobytes() == ROWS[0].tobytes()


# -- the stages, on any logits


@given(rows=TABLES, p=st.floats(0.01, 0.99))
def test_without_weights_the_row_is_the_models(rows: Table, p: float) -> None:
    steering = begin(p, size=rows.shape[1], alpha=0.0, shift=0.0)
    for step in range(3):
        assert steering.combine(step, rows[:1]).logits.tobytes() == rows[0].tobytes()
    balanced = begin(0.5, size=rows.shape[1], alpha=0.0, verdict="soft")
    assert balanced.combine(0, rows[:1]).logits.tobytes() == rows[0].tobytes()


@given(
    rows=TABLES,
    p=st.floats(0.01, 0.99),
    beta=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    top_k=st.integers(1, 30),
    form=st.sampled_from(["difference", "vcd"]),
    kind=st.sampled_from(["hard", "soft"]),
)
def test_combine_is_its_operations_one_by_one(
    rows: Table, p: float, beta: float, top_k: int, form: Any, kind: str
) -> None:
    before = rows.copy()
    changes = {"contrast": form, "alpha": 0.7, "beta": beta, "top_k": top_k, "verdict": kind, "shift": 2.0}
    steering = begin(p, size=rows.shape[1], **changes)
    combined = steering.combine(0, rows)
    assert rows.tobytes() == before.tobytes()

    verdict = steering.verdict
    assert verdict is not None
    amount = (
        2.0 * (2 * verdict.p_unsafe - 1) if kind == "soft" else math.copysign(2.0, verdict.p_unsafe - 0.5)
    )  # the threshold is 0.5
    kept = plausible(rows[0], beta)
    if amount > 0:
        kept[list(REFUSALS)] = True
    expected = np.where(kept, contrast(rows[0], rows[1], 0.7, form), np.float32(-INF))
    expected = refusal_shift(expected, REFUSALS, top_k_ids(expected, top_k), amount)
    np.testing.assert_array_equal(combined.logits, expected)
    assert combined.logits.dtype == np.float32 and np.isfinite(combined.logits).any()

    trace = combined.trace
    assert trace is not None and trace.step == 0
    tokens = [candidate.token_id for candidate in trace.candidates]
    leading = [t for t in top_k_ids(expected, 8).tolist() if np.isfinite(expected[t])]
    contrasted = np.where(kept, contrast(rows[0], rows[1], 0.7, form), np.float32(-INF))
    leaders = {int(rows[0].argmax()), int(contrasted.argmax())} - set(leading)
    assert tokens == leading + sorted(leaders, key=lambda t: (-expected[t], t))
    for c in trace.candidates:
        assert (c.z_real, c.z_reference) == (rows[0, c.token_id], rows[1, c.token_id])
        assert c.z_final == np.float32(c.z_contrast) + np.float32(c.shift)
        assert c.shift == 0 or c.token_id in REFUSALS


def test_a_trace_without_contrast_has_no_reference() -> None:
    trace = begin(0.9, alpha=0.0).combine(3, ROWS[:1]).trace
    assert trace is not None and trace.step == 3
    first = trace.candidates[0]
    assert (first.token_id, first.z_reference, first.z_contrast, first.shift) == (0, None, 2.0, 0.0)
    assert trace.candidates[1].shift == 1.0


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_broken_logits_are_refused(row: int, value: float) -> None:
    rows = ROWS.copy()
    rows[row, 6] = value
    with pytest.raises(SteeringError):
        begin().combine(0, rows)
    rows[row] = -INF
    with pytest.raises(SteeringError):
        begin().combine(0, rows)


def test_tokens_excluded_on_both_pictures_stay_excluded() -> None:
    rows = ROWS.copy()
    rows[:, 6] = -INF
    row = begin().combine(0, rows).logits
    assert row[6] == -INF and np.isfinite(row[:6]).all()


def test_a_contrast_without_a_finite_value_is_refused() -> None:
    rows = ROWS.copy()
    rows[1, 6] = -INF
    with pytest.raises(SteeringError, match="steered"):
        begin().combine(0, rows)
    with pytest.raises(SteeringError, match="steered"):
        begin(shift=1e39).combine(0, ROWS)


def test_exported_names() -> None:
    assert policies.__all__ == sorted(policies.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(policies, name) for name in policies.__all__)
