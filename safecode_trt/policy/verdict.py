"""The judge's logits as a verdict. A verdict that cannot be read is an error and never `safe`."""

from __future__ import annotations

import math

import numpy as np

from safecode_trt.config import DEFAULT_THRESHOLD
from safecode_trt.errors import SteeringError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.ops.reference import Logits, p_unsafe
from safecode_trt.policy.base import Verdict

__all__ = ["read_margin", "read_verdict"]


def read_margin(logits: Logits, defaults: SafeCodeDefaults) -> tuple[float, float]:
    """The logit of unsafe minus that of safe, and the probability of both together, from the judge's logits (V,).

    Raises:
        SteeringError: a logit is NaN or +inf, both verdict tokens are at -inf, one is no token at all, or both
            together are less likely than the model's `verdict_floor`.
    """
    safe_id, unsafe_id = defaults.safe_token_id, defaults.unsafe_token_id
    if not 0 <= min(safe_id, unsafe_id) <= max(safe_id, unsafe_id) < len(logits):
        raise SteeringError(
            f"verdict tokens {safe_id} and {unsafe_id} are not in a vocabulary of {len(logits)} tokens"
        )
    # The whole row: a model that computes NaN anywhere has not judged.
    top = float(logits.max())
    if not math.isfinite(top):
        raise SteeringError("the judge's logits are not finite; there is no verdict")
    safe, unsafe = float(logits[safe_id]), float(logits[unsafe_id])
    if safe == unsafe == -math.inf:
        raise SteeringError("the judge excludes both verdict tokens; there is no verdict")
    total = float(np.exp(logits - np.float32(top), dtype=np.float32).sum(dtype=np.float64))
    mass = min((math.exp(safe - top) + math.exp(unsafe - top)) / total, 1.0)
    if mass < defaults.verdict_floor:
        raise SteeringError(
            f"the judge's two verdict tokens have a probability of {mass:.2g} together, below the floor of "
            f"{defaults.verdict_floor:g}; it did not answer the question"
        )
    return unsafe - safe, mass


def read_verdict(logits: Logits, defaults: SafeCodeDefaults, *, threshold: float | None = None) -> Verdict:
    """The verdict of the model itself, from its logits (V,) at the end of the judge's prompt.

    The temperature and, unless one is given, the threshold are those of the model's calibration, if it has one.

    Raises:
        SteeringError: as in `read_margin`.
    """
    _, mass = read_margin(logits, defaults)
    found = defaults.calibration
    temperature = 1.0 if found is None else found.temperature
    if threshold is None:
        threshold = DEFAULT_THRESHOLD if found is None else found.threshold
    probability = p_unsafe(logits, defaults.safe_token_id, defaults.unsafe_token_id, temperature)
    return Verdict(p_unsafe=probability, threshold=threshold, source="self", mass=mass)
