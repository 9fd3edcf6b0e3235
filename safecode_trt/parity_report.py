"""What an export found when it compared a bundle with transformers, as bundle.json keeps it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GraphParity", "Parity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParity:
    """How far a graph's outputs are from transformers' on the same inputs."""

    max_abs_difference: float
    max_rel_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The comparison with transformers in fp32: features, first-step logits, and tokens.

    `vision_encoder` is None in a text-only bundle.

    `top1_agreement` is over all positions of the probes, given the same past. `top1_within_noise` counts near ties
    as agreement: tokens that transformers itself puts below its best by less than the rounding noise, which
    `logit_noise` has as a share of the logits' spread (`export.agreement.measure_agreement`). `greedy_agreement` is the
    share of the first tokens of greedy replies up to the first that differs.
    """

    probes: int
    vision_encoder: GraphParity | None
    decoder: GraphParity
    top1_agreement: float
    top1_within_noise: float
    logit_noise: float
    greedy_agreement: float
    passed: bool

    @property
    def largest_differences(self) -> str:
        """The largest difference of each graph in words."""
        logits = f"{self.decoder.max_abs_difference:.2g} in logits"
        if self.vision_encoder is None:
            return f"largest difference {logits}"
        return f"largest difference {self.vision_encoder.max_abs_difference:.2g} in features and {logits}"
