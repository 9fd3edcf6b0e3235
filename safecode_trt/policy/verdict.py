"""The judge's logits as a verdict. A verdict that cannot be read is an error and never `safe`."""

from __future__ import annotations

import math

from safecode_trt.errors import SteeringError
from safecode_trt.ops.reference import Logits, p_unsafe
from safecode_trt.policy.base import Verdict

__all__ = ["read_verdict"]


def read_verdict(logits: Logits, *, safe_id: int, unsafe_id: int, threshold: float) -> Verdict:
    """The verdict of the model itself, from its logits (V,) at the end of the judge's prompt.

    Raises:
        SteeringError: a logit is NaN or +inf, both verdict tokens are at -inf, or one is no token at all.
    """
    if not 0 <= min(safe_id, unsafe_id) <= max(safe_id, unsafe_id) < len(logits):
        raise SteeringError(
            f"verdict tokens {safe_id} and {unsafe_id} are not in a vocabulary of {len(logits)} tokens"
        )
    # The whole row: a model that computes NaN anywhere has not judged.
    if not math.isfinite(logits.max()):
        raise SteeringError("the judge's logits are not finite; there is no verdict")
    probability = p_unsafe(logits, safe_id, unsafe_id)
    if math.isnan(probability):
        raise SteeringError("the judge excludes both verdict tokens; there is no verdict")
    return Verdict(p_unsafe=probability, threshold=threshold, source="model")
