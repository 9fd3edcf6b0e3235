"""Logits for the fused step, and what the policy and the sampler in numpy make of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from safecode_trt.config import SamplingParams
from safecode_trt.errors import SteeringError
from safecode_trt.ops.fused import LEADING, FusedChoice, FusedSettings
from safecode_trt.ops.reference import Ids, Logits
from safecode_trt.ops.sample import (
    apply_min_p,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    draw,
    make_sampler,
)
from safecode_trt.policy.base import Combined
from safecode_trt.policy.contrast import Contrast, ContrastAction
from safecode_trt.policy.modulation import Modulation, ShiftAction
from safecode_trt.policy.stage import Action
from safecode_trt.policy.staged import StagedSteering
from tests.kernel_emulation import NO_IDS

INF = math.inf
KINDS = ("spread", "ties", "masked", "half", "flat", "falling", "rising")


def make_rows(kind: str, size: int, seed: int, rows: int = 2) -> NDArray[Any]:
    """Logits (rows, size) in which a token remains on every row."""
    random = np.random.default_rng(seed)
    z = random.normal(0, 4, (rows, size)).astype(np.float32)
    if kind == "ties":
        z = np.round(z)
    if kind == "masked":
        z[random.random(z.shape) < 0.9] = -INF
        z[:, random.integers(size)] = 1.0
    if kind == "half":
        return z.astype(np.float16)
    if kind == "flat":
        z[:] = random.integers(-1, 2, (rows, 1))
    if kind in ("falling", "rising"):
        z[0] = np.linspace(9, -9, size)[:: 1 if kind == "falling" else -1]
    return z


def make_refusal(size: int, seed: int) -> Ids:
    random = np.random.default_rng(seed)
    return np.unique(random.integers(0, size, random.integers(1, 1 + size)))


def on_host(logits: NDArray[Any], step: FusedSettings, refusal_ids: Ids) -> Combined:
    """The definition: the policy's step over the same logits."""
    actions: list[Action] = []
    if step.form is not None:
        contrast = Contrast(form=step.form, alpha=step.alpha, beta=step.beta)
        actions.append(ContrastAction(steps=1, contrast=contrast, context="reference"))
    if step.shift_top_k:
        modulation = Modulation(refusal_ids=refusal_ids, top_k=step.shift_top_k, amount=step.amount)
        actions.append(ShiftAction(steps=1, modulation=modulation))
    steering = StagedSteering(actions=tuple(actions), contexts=("real", "reference"))
    return steering.combine(0, logits.astype(np.float32))


def traced(combined: Combined) -> list[dict[str, Any]]:
    assert combined.trace is not None
    return [asdict(candidate) for candidate in combined.trace.candidates]


def check_greedy(
    run: Callable[[], FusedChoice], logits: NDArray[Any], step: FusedSettings, refusal_ids: Ids
) -> None:
    """Holds a step's token and trace, or its error, against the policy's and the sampler's."""
    try:
        combined = on_host(logits, step, refusal_ids)
    except SteeringError:
        with pytest.raises(SteeringError):
            run()
        return
    choice = run()
    assert choice.token_id == make_sampler(SamplingParams())(combined.logits, [])
    assert [asdict(token) for token in choice.candidates] == traced(combined)


def filtered(row: Logits, sampling: SamplingParams) -> Logits:
    """A row as it is drawn from, filter by filter."""
    if sampling.temperature != 1:
        row = apply_temperature(row, sampling.temperature)
    if sampling.top_k > 0:
        row = apply_top_k(row, sampling.top_k)
    if sampling.top_p < 1:
        row = apply_top_p(row, sampling.top_p)
    return apply_min_p(row, sampling.min_p)


def uniform_of(sampling: SamplingParams) -> float:
    """The number that the sampler of a reply takes for its first token."""
    return float(np.random.Generator(np.random.PCG64(sampling.seed)).random())


def tokens_near(row: Logits, sampling: SamplingParams, uniform: float) -> set[int]:
    """What a draw may be whose exponentials are off in the last place, as those of another machine are."""
    near = 1e-6
    shares = [min(max(sampling.top_p + by, near), 1.0) for by in (0, -near, near)]
    rows = [filtered(row, replace(sampling, top_p=p if sampling.top_p < 1 else 1.0)) for p in shares]
    uniforms = [min(max(uniform + by, 0.0), 1 - near) for by in (0, -near, near)]
    return {draw(kept, u) for kept in rows for u in uniforms}


def may_need_the_host(logits: NDArray[Any], step: FusedSettings, refusal_ids: Ids, steered: Logits) -> bool:
    """Whether the filters keep tokens no likelier than the last of the leading ones that the device collects."""
    row, reference = logits.astype(np.float32)[[0, -1]]
    if step.form is not None:
        exempt = refusal_ids if step.shift_top_k > 0 and step.amount > 0 else NO_IDS
        row = Contrast(form=step.form, alpha=step.alpha, beta=step.beta).apply(row, reference, exempt)
    bound = np.sort(row)[-LEADING] if len(row) >= LEADING else np.float32(-INF)
    # top-k comes first, and what it keeps has to be known before top-p can add up.
    sampling = replace(step.sampling, top_p=min(step.sampling.top_p + 1e-6, 1.0))
    if sampling.top_k > 0:
        sampling = replace(sampling, top_p=1.0, min_p=0.0)
    kept = filtered(steered, sampling) > -INF
    scaled = apply_temperature(np.append(steered, bound), step.sampling.temperature)
    return bool(bound > -INF and (scaled[:-1][kept] <= scaled[-1]).any())
