"""What a policy hands to a device to do in one is what it does itself."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safecode_trt.config import MODES, Mode, SamplingParams
from safecode_trt.ops.reference import argmax_lowest
from tests.kernel_emulation import EmulatedStep
from tests.test_modes import SIZE, begin, policy_of, tables

GREEDY = SamplingParams()
# The row of another context, and tokens that are put in by force, are nothing for the kernels.
FUSED = {mode: mode not in ("safecode-release", "verdict-in-prompt") for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10, deadline=None)
@given(rows=tables(), p=st.sampled_from([0.1, 0.5, 0.9]))
def test_a_fused_step_is_the_policys(mode: Mode, rows: np.ndarray, p: float, kernels: ctypes.CDLL) -> None:
    policy = policy_of(mode)
    steering = begin(policy, rows, p)
    carried = rows[: policy.plan.rows("steered")]
    for step in range(7 if steering.steps is None else steering.steps):
        fused = steering.fused(step, GREEDY)
        assert (fused is not None) == FUSED[mode]
        if fused is None:
            continue
        choice = EmulatedStep(kernels, SIZE, fused.refusal_ids).run(carried, fused.settings)
        combined = steering.combine(step, carried)
        assert choice.token_id == argmax_lowest(combined.logits)
        assert combined.trace is not None
        assert [asdict(x) for x in choice.candidates] == [asdict(x) for x in combined.trace.candidates]


@pytest.mark.parametrize("mode", ["safecode", "safecode-paper"])
def test_stages_that_have_ended_are_left_out(mode: Mode) -> None:
    rows = np.random.default_rng(1).normal(0, 3, (3, SIZE)).astype(np.float32)
    steering = begin(policy_of(mode, contrast_steps=2, shift_steps=1, top_k=9), rows)
    first, second = steering.fused(0, GREEDY), steering.fused(1, GREEDY)
    assert first is not None and second is not None
    assert (first.settings.shift_top_k, second.settings.shift_top_k) == (9, 0)
    assert first.settings.form == second.settings.form is not None
    assert second.settings == replace(first.settings, shift_top_k=0, amount=0.0)


def test_a_shift_of_all_tokens_is_for_the_host() -> None:
    rows = np.random.default_rng(1).normal(0, 3, (3, SIZE)).astype(np.float32)
    steering = begin(policy_of("safecode", top_k=0, contrast_steps=3, shift_steps=1), rows)
    assert steering.fused(0, GREEDY) is None and steering.fused(1, GREEDY) is not None
