"""Operations on rows of logits: their definition in numpy, and the choice of a token."""

from safecode_trt.ops.reference import (
    argmax_lowest,
    contrast,
    p_unsafe,
    plausible,
    refusal_shift,
    top_k_ids,
)
from safecode_trt.ops.sample import Sampler, make_sampler

__all__ = [
    "Sampler",
    "argmax_lowest",
    "contrast",
    "make_sampler",
    "p_unsafe",
    "plausible",
    "refusal_shift",
    "top_k_ids",
]
