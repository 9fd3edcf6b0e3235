"""How logits agree with the ones expected, and what rounding to a precision excuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import Precision

__all__ = ["LEAST_TOP1", "MOST_NOISE", "NEAR_TIE", "Agreement", "measure_agreement"]

Array = NDArray[np.float32]
# Least share of positions with the same best token, near ties aside.
LEAST_TOP1: Mapping[Precision, float] = {"fp32": 1.0, "fp16": 0.99, "bf16": 0.99, "int8": 0.99, "int4": 0.9}
# Most noise, so that a wrong graph cannot excuse its tokens with it: its noise is about 1.4. Random weights show
# 0.001 to 0.002 in fp16 and 0.02 to 0.03 in int8 with two to four layers; the rest is room for deeper models.
MOST_NOISE: Mapping[Precision, float] = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.1, "int8": 0.1, "int4": 0.6}
# Two standard deviations of the difference of two logits that are both off by the noise.
NEAR_TIE = 2 * 2**0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How logits agree with transformers': see `measure_agreement`."""

    top1: float
    top1_within_noise: float
    noise: float

    def holds(self, precision: Precision) -> bool:
        """Whether it is what rounding to that precision explains; never with NaN."""
        return self.top1_within_noise >= LEAST_TOP1[precision] and self.noise <= MOST_NOISE[precision]


def measure_agreement(found: Array, expected: Array) -> Agreement:
    """Compares logits (n, V) of n positions.

    `noise` is the root mean square of the differences over the standard deviation of the expected logits, `top1` the
    share of positions with the same best token. `top1_within_noise` counts a token as well that is expected to be
    less than NEAR_TIE times the noise below the best: rounding alone decides between such two.
    """
    spread = float(expected.std())
    noise = float(np.sqrt(np.mean(np.square(found - expected), dtype=np.float64)))
    chosen = np.take_along_axis(expected, found.argmax(-1)[:, None], -1)[:, 0]
    behind = expected.max(-1) - chosen
    return Agreement(
        top1=float((behind == 0).mean()),
        top1_within_noise=float((behind <= NEAR_TIE * noise).mean()),
        noise=noise / max(spread, 1e-30),
    )
