"""The modes as lists of stages: each against its formula, alone, combined, switched off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from safecode_trt.config import MODES, STAGES, Mode, Prompts, SafeCodeConfig, SamplingParams, StageName
from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.manifest import RefusalFilter
from safecode_trt.policy import Policy, Steering, Verdict, make_policy, mode_settings
from safecode_trt.policy.base import DiffusionNoise, PromptEdit
from tests.test_policy import DEFAULTS as BASE
from tests.test_policy import INF, SAFE, UNSAFE, judge

Table = NDArray[np.float32]
SIZE = 40
PHRASES = (("Sorry, no", (1, 7, 9)), ("As it is", (10, 11, 12, 13, 14, 15)), ("I cannot", (3, 8)))
DEFAULTS = dataclasses.replace(
    BASE,
    refusal_phrases=tuple(text for text, _ in PHRASES),
    refusal_tokens=tuple(ids for _, ids in PHRASES),
    refusal_token_ids=(1, 3, 10),
)
REFUSALS = (1, 3, 10)
ASKED = SamplingParams(max_new_tokens=64, temperature=0.3, top_k=5, seed=3)
PROMPT_MODES: tuple[Mode, ...] = ("rose", "cfg", "coca")
PS = st.sampled_from([0.02, 0.3, 0.5, 0.7, 0.98])


def policy_of(mode: Mode, *stages: StageName, **changes: Any) -> Policy:
    settings = dataclasses.replace(mode_settings(mode, DEFAULTS), **changes)
    return make_policy(mode, DEFAULTS, settings=settings, stages=stages or None)


def tables(rows: int = 3) -> st.SearchStrategy[Table]:
    seeds = st.integers(0, 2**32 - 1)
    return seeds.map(lambda seed: np.random.default_rng(seed).normal(0, 3, (rows, SIZE)).astype(np.float32))


def first(policy: Policy, rows: Table, p: float) -> Mapping[str, Table]:
    """First logits of a policy's contexts: rows in the plan's order, the judge's from p."""
    names = [context.name for context in policy.plan.contexts]
    found = dict(zip(names, rows, strict=False))
    return {**found, "judge": judge(p, SIZE)} if "judge" in names else found


def begin(policy: Policy, rows: Table, p: float = 0.9) -> Steering:
    return policy.begin(first(policy, rows, p))


def led(policy: Policy, rows: Table, p: float = 0.9, step: int = 0) -> Table:
    return begin(policy, rows, p).combine(step, rows[: policy.plan.rows("steered")]).logits


# -- what each mode is


def test_every_mode_has_a_policy_and_every_stage_a_name() -> None:
    assert {*CONTEXTS} == {*MODES}
    for stage in STAGES:
        assert len(make_policy("safecode-paper", DEFAULTS, stages=[stage]).plan.contexts) > 1


CONTEXTS: Mapping[Mode, Sequence[str]] = {
    "plain": ["real"],
    "vcd": ["real", "noised"],
    "safecode-paper": ["real", "noised", "judge"],
    "safecode-release": ["real", "noised", "judge"],
    "safecode": ["real", "noised", "judge"],
    "verdict-in-prompt": ["real", "warned", "judge"],
    "verdict-gate": ["real", "judge"],
    "rose": ["real", "reverse"],
    "cfg": ["real", "bare"],
    "coca": ["real", "bare"],
}


@pytest.mark.parametrize("mode", MODES)
def test_contexts_and_lifetimes(mode: Mode) -> None:
    plan = make_policy(mode, DEFAULTS).plan
    assert [context.name for context in plan.contexts] == CONTEXTS[mode]
    assert plan.rows("steered") == sum(name != "judge" for name in CONTEXTS[mode])


@given(rows=tables(2))
def test_vcd(rows: Table) -> None:
    policy = make_policy("vcd", DEFAULTS)
    assert policy.plan.noise == DiffusionNoise(step=500) and begin(policy, rows).steps is None
    real, noised = rows.astype(np.float64)
    expected = np.where(real >= real.max() + math.log(0.1), 2 * real - noised, -INF)
    np.testing.assert_allclose(led(policy, rows, step=77), expected, atol=1e-4)


@given(rows=tables(2))
def test_prompt_contrasts(rows: Table) -> None:
    prompts = DEFAULTS.prompts
    rose, cfg, coca = (make_policy(name, DEFAULTS) for name in PROMPT_MODES)
    assert rose.plan.prompts == {"reverse": PromptEdit(system=prompts.reverse)}
    assert cfg.plan.prompts == coca.plan.prompts == {"request": PromptEdit(system=prompts.principle)}
    a, b = rows.astype(np.float64)
    np.testing.assert_allclose(led(rose, rows), a - 0.5 * b, atol=1e-4)
    np.testing.assert_allclose(led(cfg, rows), b + 1.5 * (a - b), atol=1e-4)  # gamma 1.5
    np.testing.assert_allclose(led(coca, rows), a + 1.0 * (a - b), atol=1e-4)
    assert begin(rose, rows).steps is begin(cfg, rows).steps is begin(coca, rows).steps is None


def test_prompts_may_be_others() -> None:
    other = dataclasses.replace(DEFAULTS, prompts=Prompts(reverse="Obey.", principle="Be kind."))
    assert make_policy("rose", other).plan.prompts["reverse"].system == "Obey."
    assert make_policy("coca", other).plan.prompts["request"].system == "Be kind."
    with pytest.raises(ConfigError, match=r"verdict_text_safe must be a text with \{request\}"):
        Prompts(verdict_text_safe="It is safe.")
    with pytest.raises(ConfigError, match="principle must be some text"):
        Prompts(principle=" ")


@pytest.mark.parametrize(("p", "answer"), [(0.9, DEFAULTS.fallback_refusal), (0.1, None)])
def test_the_gate(p: float, answer: str | None) -> None:
    steering = begin(make_policy("verdict-gate", DEFAULTS), np.zeros((1, SIZE), np.float32), p)
    assert (steering.answer, steering.steps) == (answer, 0)


@given(rows=tables(2), p=PS)
def test_the_verdict_in_the_prompt(rows: Table, p: float) -> None:
    policy = make_policy("verdict-in-prompt", DEFAULTS)
    told = {
        name: PromptEdit(template=getattr(DEFAULTS.prompts, f"verdict_text_{name}"))
        for name in ("safe", "unsafe")
    }
    assert (policy.plan.prompts["request"], policy.plan.prompts["warned"]) == (told["safe"], told["unsafe"])
    steering = begin(policy, rows, p)
    verdict = steering.verdict
    assert verdict is not None and steering.steps == (None if verdict.unsafe else 0)
    if verdict.unsafe:
        assert steering.combine(9, rows).logits.tobytes() == rows[1].tobytes()
    known = policy.informed(verdict)
    assert known.plan.prompts == {"request": told["unsafe" if verdict.unsafe else "safe"]}
    assert [context.name for context in known.plan.contexts] == ["real"] and begin(known, rows).steps == 0


def test_a_contrast_with_no_picture() -> None:
    plan = policy_of("safecode", reference="absent").plan
    assert [(c.name, c.prompt) for c in plan.contexts][1] == ("unseen", "unseen")
    assert plan.prompts["unseen"] == PromptEdit(pictures=False) and plan.noise is None


# -- switches


@given(rows=tables(2), p=PS, mode=st.sampled_from(["safecode", "safecode-paper"]))
def test_each_part_switched_off_is_the_mode_without_it(rows: Table, p: float, mode: Any) -> None:
    for off in ({"alpha": 0.0}, {"contrast_steps": 0}):
        same = policy_of(mode, "shift")
        assert led(policy_of(mode, **off), rows, p).tobytes() == led(same, rows, p).tobytes()
    for off in ({"shift": 0.0}, {"shift_steps": 0}):
        same = policy_of(mode, "contrast")
        assert led(policy_of(mode, **off), rows, p).tobytes() == led(same, rows, p).tobytes()


@given(rows=tables(1), p=PS, stages=st.permutations(["contrast", "shift", "reverse", "principle"]))
def test_all_switched_off_is_plain(rows: Table, p: float, stages: list[StageName]) -> None:
    off = policy_of("safecode", *stages, alpha=0.0, shift=0.0, guidance=0.0)
    plain = make_policy("plain", DEFAULTS)
    assert off.plan == plain.plan
    steering = begin(off, rows, p)
    assert (steering.steps, steering.verdict, steering.answer) == (0, None, None)
    assert steering.sampling(ASKED, steered=False) == ASKED
    assert steering.combine(0, rows).logits.tobytes() == rows[0].tobytes()


def test_the_mask_the_verdicts_form_and_the_candidates_switch_alone() -> None:
    rows = np.random.default_rng(1).normal(0, 3, (2, SIZE)).astype(np.float32)
    assert np.isneginf(led(policy_of("safecode"), rows)).any()
    assert np.isfinite(led(policy_of("safecode", beta=0.0), rows)).all()
    soft, hard = (led(policy_of("safecode", verdict=v, beta=0.0), rows, 0.6) for v in ("soft", "hard"))
    assert np.abs(hard - soft).max() == pytest.approx(3.0 - 3.0 * (2 * 0.6 - 1), abs=1e-5)
    moved = led(policy_of("safecode", beta=0.0, top_k=0), rows) - led(
        policy_of("safecode", "contrast", beta=0.0), rows
    )
    assert np.flatnonzero(moved).tolist() == list(REFUSALS)


def test_refusal_tokens_that_ordinary_answers_begin_with() -> None:
    found = RefusalFilter(answers=20, share=0.02, dropped=(3,), found=(4,))
    defaults = dataclasses.replace(DEFAULTS, refusal_filter=found)
    row = np.zeros((1, SIZE), np.float32)

    def moved(**changes: Any) -> list[int]:
        settings = dataclasses.replace(defaults.settings, top_k=0, alpha=0.0, **changes)
        return np.flatnonzero(led(make_policy("safecode", defaults, settings=settings), row)).tolist()

    assert moved() == [1, 10] and moved(refusal_filter=False) == [1, 3, 10]
    nothing = dataclasses.replace(found, dropped=REFUSALS, found=(4, 4, 4))
    with pytest.raises(ConfigError, match="leaves no refusal token"):
        make_policy("safecode", dataclasses.replace(DEFAULTS, refusal_filter=nothing))


@pytest.mark.parametrize(("p", "abstains"), [(0.39, False), (0.41, True), (0.59, True), (0.61, False)])
def test_a_verdict_in_the_band_moves_nothing_and_says_so(p: float, abstains: bool) -> None:
    rows = np.random.default_rng(2).normal(0, 3, (2, SIZE)).astype(np.float32)
    policy = policy_of("safecode", abstain=(0.4, 0.6))
    steering = begin(policy, rows, p)
    assert steering.verdict is not None and steering.verdict.abstained is abstains
    alone = led(policy_of("safecode", "contrast"), rows)
    assert (steering.combine(0, rows).logits.tobytes() == alone.tobytes()) is abstains
    gate = begin(policy_of("verdict-gate", abstain=(0.4, 0.6)), rows[:1], p)
    assert gate.answer == (DEFAULTS.fallback_refusal if p > 0.6 else None)


# -- a verdict from elsewhere


@given(rows=tables(2), p=PS, mode=st.sampled_from([m for m in MODES if "judge" in CONTEXTS[m]]))
def test_a_known_verdict_is_the_judges(rows: Table, p: float, mode: Mode) -> None:
    policy = make_policy(mode, DEFAULTS)
    asked = begin(policy, rows, p)
    assert asked.verdict is not None
    known = policy.informed(Verdict(p_unsafe=asked.verdict.p_unsafe, threshold=0.5, source="elsewhere"))
    assert "judge" not in [context.name for context in known.plan.contexts]
    assert "judge" not in known.plan.prompts
    told = begin(known, rows)
    assert told.verdict is not None and told.verdict.source == "elsewhere"
    assert told.answer == asked.answer
    if mode != "verdict-in-prompt":
        assert told.steps == asked.steps
        for step in range(told.steps or 0):
            shown = [s.combine(step, rows).logits.tobytes() for s in (told, asked)]
            assert shown[0] == shown[1]


# -- composition


@given(rows=tables(3), p=PS)
def test_stages_act_in_the_order_that_is_named(rows: Table, p: float) -> None:
    changes: dict[str, Any] = {"alpha": 0.7, "beta": 0.0, "guidance": 0.4, "top_k": 0}
    real, noised, reverse = rows
    policy = policy_of("safecode-paper", "contrast", "shift", "reverse", **changes)
    assert [c.name for c in policy.plan.contexts] == ["real", "noised", "reverse", "judge"]
    amount = math.copysign(1.0, p - 0.5)
    expected = real - 0.7 * noised
    expected[list(REFUSALS)] += amount
    np.testing.assert_allclose(led(policy, rows, p), expected - 0.4 * reverse, atol=1e-4)
    other = policy_of("safecode-paper", "reverse", "contrast", **changes)
    np.testing.assert_allclose(led(other, rows[[0, 2, 1]]), real - 0.4 * reverse - 0.7 * noised, atol=1e-4)


def test_a_mask_spares_what_a_later_stage_raises() -> None:
    rows = np.zeros((2, SIZE), np.float32)
    rows[:, 5] = 20
    for p, kept in ((0.9, [1, 3, 5, 10]), (0.1, [5])):
        z = led(policy_of("safecode", beta=0.1), rows, p)
        assert np.flatnonzero(np.isfinite(z)).tolist() == kept


def test_the_longest_stage_decides_how_many_rows_go_on() -> None:
    policy = policy_of("safecode", "contrast", "shift", "reverse", contrast_steps=2, guidance_steps=None)
    assert begin(policy, np.zeros((3, SIZE), np.float32)).steps is None


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        (["fast"], {}, "must be out of contrast, shift, .*, got 'fast'"),
        ([""], {}, "got ''"),
        (["shift", "contrast", "shift"], {}, "got 'shift' twice"),
        (["release", "shift"], {}, "goes with no other stage"),
        (["verdict-text", "principle"], {}, "different things by the prompt 'request'"),
        (["verdict-text"], {"abstain": (0.4, 0.6)}, "stage verdict-text, which always acts on the verdict"),
        (["release"], {"shift": 2.5}, "shift must be at most 2"),
        (["release"], {"reference": "cached"}, "reference must be noised"),
    ],
)
def test_what_does_not_go_together(stages: list[Any], changes: dict[str, Any], message: str) -> None:
    settings = dataclasses.replace(SafeCodeConfig(), **changes)
    with pytest.raises(ConfigError, match=message):
        make_policy("safecode", DEFAULTS, settings=settings, stages=stages)


def test_broken_logits_end_in_a_steering_error() -> None:
    modes: tuple[Mode, ...] = ("vcd", "rose", "coca", "safecode-release")
    for mode in modes:
        policy = make_policy(mode, DEFAULTS)
        rows = np.zeros((2, SIZE), np.float32)
        steering = begin(policy, rows, 0.1)
        rows[1, 4] = math.nan
        with pytest.raises(SteeringError, match="not finite"):
            steering.combine(0, rows)


def test_token_ids_of_this_file() -> None:
    assert not {SAFE, UNSAFE} & {token for _, ids in PHRASES for token in ids}
