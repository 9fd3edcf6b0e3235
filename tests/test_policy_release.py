"""The mode safecode-release, said again in numpy: what the authors' program does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.policy import Steering, make_policy, mode_settings
from safecode_trt.policy.base import PixelNoise
from safecode_trt.policy.release import choose_phrase
from tests.test_modes import (
    ASKED,
    DEFAULTS,
    PHRASES,
    SIZE,
    Table,
    begin,
    policy_of,
    tables,
)


def their_phrase(real: Table, noised: Table) -> tuple[int, ...]:
    z = real.astype(np.float64) - 0.3 * noised
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    ranked = sorted(PHRASES, key=lambda phrase: -p[list(phrase[1])].sum())
    telling = [one for one in ranked if "sorry" in one[0].lower() or "cannot" in one[0].lower()]
    return telling[0][1][:5]


@given(rows=tables(2))
def test_the_release_when_unsafe(rows: Table) -> None:
    steering = begin(make_policy("safecode-release", DEFAULTS), rows, 0.9)
    expected = their_phrase(*rows)
    assert steering.steps == len(expected)
    forced = [int(steering.combine(step, rows).logits.argmax()) for step in range(len(expected))]
    assert tuple(forced) == expected
    assert all(np.isfinite(steering.combine(s, rows).logits).sum() == 1 for s in range(len(expected)))
    rest = steering.sampling(ASKED, steered=False)
    assert (rest.temperature, rest.top_p, rest.top_k, rest.max_new_tokens) == (0.7, 0.85, 0, 20)


@given(rows=tables(2))
def test_the_release_when_safe(rows: Table) -> None:
    steering = begin(make_policy("safecode-release", DEFAULTS), rows, 0.1)
    z = rows[0].astype(np.float64) - 0.15 * rows[1]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    p[[token for _, ids in PHRASES for token in ids]] *= 0.5
    p /= p.sum()
    assert steering.steps == 5
    start, later = (steering.combine(step, rows).logits for step in (0, 3))
    assert np.flatnonzero(np.isfinite(start)).tolist() == [int(p.argmax())]
    weights = np.exp(later - later.max(), dtype=np.float64)
    np.testing.assert_allclose(weights / weights.sum(), p, atol=1e-5)
    chosen, rest = (steering.sampling(ASKED, steered=steered) for steered in (True, False))
    assert (chosen.temperature, chosen.top_p) == (0.8, 1.0)
    assert (rest.temperature, rest.top_p, rest.max_new_tokens) == (0.8, 0.9, 64)


def test_each_switch_of_the_release() -> None:
    rows = np.random.default_rng(3).normal(0, 3, (2, SIZE)).astype(np.float32)
    release = mode_settings("safecode-release", DEFAULTS).release

    def switched(p: float, **changes: Any) -> Steering:
        policy = policy_of("safecode-release", release=dataclasses.replace(release, **changes))
        return begin(policy, rows, p)

    everything = [token for _, ids in PHRASES for token in ids]
    unforced = switched(0.9, force_prefix=False).combine(1, rows).logits
    expected = rows[0] - np.float32(0.3) * rows[1]
    expected[everything] += math.log(2)
    np.testing.assert_allclose(unforced, expected, atol=1e-5)
    whole = switched(0.1, halve_alpha=False).combine(1, rows).logits
    untouched = [token for token in range(SIZE) if token not in everything]
    np.testing.assert_allclose(whole[untouched], (rows[0] - 0.3 * rows[1])[untouched], atol=1e-5)
    few = switched(0.1, whole_vocabulary=False).combine(1, rows).logits
    halved = np.flatnonzero(np.abs(few - (rows[0] - np.float32(0.15) * rows[1])) > 0.5)
    leading = np.argsort(-(rows[0] - np.float32(0.15) * rows[1]), kind="stable")[:20]
    assert halved.tolist() == sorted(set(leading.tolist()) & set(everything)) != sorted(everything)
    own = switched(0.1, own_sampling=False, safe_tokens=None)
    assert own.sampling(ASKED, steered=False) == ASKED
    assert np.isfinite(own.combine(0, rows).logits).all()
    assert switched(0.9, unsafe_tokens=7).sampling(ASKED, steered=False).max_new_tokens == 7
    assert policy_of("safecode-release").plan.noise == PixelNoise(sigma=0.1)


@pytest.mark.parametrize("tokens", [(), ((1,), (3,), ()), ((1,), (3,)), ((1,), (3,), (-1,))])
def test_the_release_needs_tokens_for_every_phrase(tokens: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match="one or more tokens each"):
        make_policy("safecode-release", dataclasses.replace(DEFAULTS, refusal_tokens=tokens))
    outside = dataclasses.replace(DEFAULTS, refusal_tokens=((1,), (3,), (SIZE,)))
    with pytest.raises(SteeringError, match=f"refusal token {SIZE} is not in the model's vocabulary"):
        begin(make_policy("safecode-release", outside), np.zeros((2, SIZE), np.float32))


def test_long_phrases_win_without_a_telling_word() -> None:
    phrases = (("No", (1,)), ("It is not to be", (2, 3, 4)), ("Sorry", (5,)))
    z = np.zeros(SIZE, np.float32)
    assert choose_phrase(z, phrases[:2], 20)[0] == "It is not to be"
    assert choose_phrase(z, phrases, 20)[0] == "Sorry"
    assert choose_phrase(z, phrases, 1)[0] == "It is not to be"
