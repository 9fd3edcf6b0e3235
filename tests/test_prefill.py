"""The prefill schedule: every position of every row is filled once, in order, and shared work is done once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from safecode_trt.contract import MASKED, Geometry
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.prefill import PASS_COST, PrefillPlan, plan_prefill
from safecode_trt.runtime.session import DecoderFeeds

rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=4)


def arrays(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int64) for row in lists]


def contents(plan: PrefillPlan, keys: list[np.ndarray], done: list[int]) -> list[list[int]]:
    """Replays a plan on lists of keys."""
    filled = [list(row[:count]) for row, count in zip(keys, done, strict=True)]
    for phase in plan.phases:
        for step in phase.passes:
            for row, (start, count) in enumerate(zip(step.starts, step.counts, strict=True), step.first_row):
                assert start == len(filled[row])
                filled[row] += list(keys[row][start : start + count])
        for fork in phase.forks:
            filled[fork.target] = filled[fork.source][: fork.length]
    return filled


@given(rows, st.integers(1, 10))
def test_every_row_ends_up_with_its_own_keys(lists: list[list[int]], min_shared: int) -> None:
    keys = arrays(lists)
    plan = plan_prefill(keys, [0] * len(keys), min_shared=min_shared)
    assert contents(plan, keys, [0] * len(keys)) == lists


@given(rows, st.data())
def test_kept_prefixes_are_not_computed_again(lists: list[list[int]], data: st.DataObject) -> None:
    keys = arrays(lists)
    done = [data.draw(st.integers(0, len(row) - 1)) for row in lists]
    plan = plan_prefill(keys, done, min_shared=3)
    assert contents(plan, keys, done) == lists


@given(rows)
def test_all_last_tokens_are_in_the_last_phase(lists: list[list[int]]) -> None:
    plan = plan_prefill(arrays(lists), [0] * len(lists), min_shared=2)
    last = [count for step in plan.phases[-1].passes for count in step.counts]
    assert len(last) == len(lists) and min(last) >= 1


def test_a_shared_prefix_is_computed_once() -> None:
    picture = list(range(100, 120))
    keys = arrays([[1, 2, *picture, 3, 4], [1, 2, *picture, 5]])
    plan = plan_prefill(keys, [0, 0])
    assert [step.counts for step in plan.passes] == [(22,), (2, 1)]


def test_rows_of_very_different_length_get_passes_of_their_own() -> None:
    short, long = list(range(10)), list(range(100, 180))
    assert [step.first_row for step in plan_prefill(arrays([short, long]), [0, 0]).passes] == [0, 1]
    assert len(plan_prefill(arrays([short, list(range(50, 62))]), [0, 0]).passes) == 1


@given(rows)
def test_a_plan_costs_no_more_than_rows_by_themselves(lists: list[list[int]]) -> None:
    plan = plan_prefill(arrays(lists), [0] * len(lists))
    assert sum(step.cost for step in plan.passes) <= sum(len(row) + PASS_COST for row in lists)


def test_a_short_shared_prefix_is_not_worth_a_pass() -> None:
    assert len(plan_prefill(arrays([[1, 2, 3], [1, 2, 4]]), [0, 0]).phases) == 1


def test_a_request_that_is_a_prefix_of_another_still_gives_logits() -> None:
    keys = arrays([list(range(20)), list(range(20))])
    plan = plan_prefill(keys, [0, 0])
    assert plan.passes[-1].counts[-1] == 1


def test_capacity_counts_the_padding() -> None:
    keys = arrays([[9] * 5, list(range(30))])
    assert plan_prefill(keys, [4, 29]).capacity == 30
    assert plan_prefill(arrays([[9] * 30, list(range(40))]), [29, 37]).capacity == 40


def test_the_null_backend_sees_only_what_the_mask_shows() -> None:
    geometry = Geometry(
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        hidden_size=4,
        vocab_size=11,
        context_length=8,
        image_seq_len=1,
    )
    session, embeds = NullSession(geometry), np.eye(3, 4, dtype=np.float32)[None]

    def logits(hidden_key: int, scale: float) -> NDArray[np.float32]:
        """Those of three tokens, one of them masked and multiplied."""
        memory = session.allocate(1)
        memory.reserve(3)
        bias = np.full((1, 1, 3, memory.capacity), MASKED, np.float32)
        bias[..., :3] = 0
        bias[..., hidden_key] = MASKED
        tokens = embeds.copy()
        tokens[0, hidden_key] *= scale
        feeds = DecoderFeeds(
            inputs_embeds=tokens,
            rope_cos=np.ones((1, 3, 2), np.float32),
            rope_sin=np.zeros((1, 3, 2), np.float32),
            write_indices=np.zeros(1, np.int64),
            attention_bias=bias,
            logit_positions=np.full((1, 1), 2),
        )
        return session.decode(feeds, memory).logits[:, 0].copy()

    np.testing.assert_array_equal(logits(1, 1.0), logits(1, 100.0))
    assert not np.array_equal(logits(0, 1.0), logits(1, 1.0))
