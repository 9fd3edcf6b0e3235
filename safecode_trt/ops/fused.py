"""The step that kernels.cu does in one go: what it can do, its settings, and the records that both sides share.

Knows numbers and their layout, nothing of CUDA: what launches the kernels is in cuda.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.config import PLAIN_SAMPLING, SamplingParams
from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.ops.candidate import TRACED, Candidate, traced_candidates
from safecode_trt.ops.reference import ContrastForm, Ids

__all__ = [
    "LEADING",
    "MAX_VOCABULARY",
    "OUTCOME",
    "SHIFT_MOST",
    "STEP",
    "FusedChoice",
    "FusedSettings",
    "FusedStep",
    "make_step",
    "read_outcome",
    "refusal_bits",
    "tiles_of",
    "why_not_fused",
]

TILE = 1024
LEADING = 64
SHIFT_MOST = LEADING - TRACED
"""The most candidates of stage 2: a trace needs the eight tokens after them, which the shift leaves in place."""

MAX_VOCABULARY = 256 * TILE
_TINY = float(np.finfo(np.float32).tiny)
_BAD_LOGITS, _BAD_STEERED, _NEEDS_HOST = 1, 2, 3

_POINTERS = ("logits", "refusal", "maxima", "leading", "sums", "ticket", "outcome")
_DOUBLES = ("uniform", "top_p")
_FLOATS = ("negated_alpha", "real_weight", "log_beta", "amount", "temperature", "log_min_p")
_INTS = ("rows", "vocabulary", "half", "contrasts", "exempts", "shift_top_k", "top_k", "scales")

STEP = np.dtype(
    [(name, np.uint64) for name in _POINTERS]
    + [(name, np.float64) for name in _DOUBLES]
    + [(name, np.float32) for name in _FLOATS]
    + [(name, np.int32) for name in _INTS],
    align=True,
)
"""`Step` of step.cuh; the pointers are addresses on the device."""

_VALUES = ("z_real", "z_reference", "z_contrast", "z_final")
_TOKEN = [("token_id", np.int32), *((name, np.float32) for name in _VALUES), ("moved", np.int32)]
OUTCOME = np.dtype(
    [(name, np.int32) for name in ("status", "token", "candidates", "unused")]
    + [("traced", _TOKEN, TRACED), ("leaders", _TOKEN, 2)],
    align=True,
)
"""`Outcome` of step.cuh: all that leaves the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedSettings:
    """One step: stage 1 if `form` is given, stage 2 if `shift_top_k` is above 0, and the choice of a token.

    The names are those of `SafeCodeConfig`; `amount` is by how much the refusal tokens move. A top_k of 0, for all
    tokens there, is for the host.
    """

    form: ContrastForm | None = None
    alpha: float = 0.0
    beta: float = 0.0
    shift_top_k: int = 0
    amount: float = 0.0
    sampling: SamplingParams = PLAIN_SAMPLING


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedStep:
    """Settings, and the tokens that stage 2 moves."""

    settings: FusedSettings
    refusal_ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedChoice:
    """The chosen token, None if the host must choose from the steered row, and the `traced_candidates`."""

    token_id: int | None
    candidates: tuple[Candidate, ...]


def why_not_fused(settings: FusedSettings, vocabulary: int, rows: int) -> str | None:
    """Why such a step over `rows` rows is for the host (policy and ops.sample); None if the device can do it."""
    if vocabulary > MAX_VOCABULARY:
        return f"a vocabulary of {vocabulary} tokens is above {MAX_VOCABULARY}"
    if settings.shift_top_k > SHIFT_MOST:
        return f"top_k {settings.shift_top_k} of the shift is above {SHIFT_MOST}"
    if settings.sampling.repetition_penalty != 1:
        return "a repetition penalty needs the history, which the device does not have"
    if not 1 <= rows <= 3:
        return f"{rows} rows of logits are not between 1 and 3"
    if settings.form is not None and rows < 2:
        return "a contrast needs two rows of logits"
    if not abs(settings.amount) <= float(np.finfo(np.float32).max):
        return f"a shift of {settings.amount!r} is not finite"
    return None


def make_step(
    settings: FusedSettings, *, rows: int, vocabulary: int, half: bool, uniform: float
) -> NDArray[Any]:
    """The record `STEP`, without its pointers. `uniform` is the sampler's number for this token.

    Raises:
        ConfigError: the device cannot do this step.
    """
    reason = why_not_fused(settings, vocabulary, rows)
    if reason is not None:
        raise ConfigError(f"the fused step cannot run: {reason}; let the host compute it")
    step = np.zeros((), STEP)
    with np.errstate(over="ignore"):
        _fill(step, settings)
    step["uniform"] = uniform
    step["rows"], step["vocabulary"], step["half"] = rows, vocabulary, half
    return step


def read_outcome(outcome: NDArray[Any], settings: FusedSettings) -> FusedChoice:
    """What a step has chosen, from the record `OUTCOME`.

    Raises:
        SteeringError: a logit was NaN or +inf, or no token was left, before or after the stages.
    """
    status = int(outcome["status"])
    if status == _BAD_LOGITS:
        raise SteeringError("the model's logits are not finite")
    if status == _BAD_STEERED:
        raise SteeringError("the steered logits are not finite")
    contrasts = settings.form is not None

    def candidate(token: NDArray[Any]) -> Candidate:
        return Candidate(
            token_id=int(token["token_id"]),
            z_real=float(token["z_real"]),
            z_reference=float(token["z_reference"]) if contrasts else None,
            z_contrast=float(token["z_contrast"]),
            shift=settings.amount if token["moved"] else 0.0,
            z_final=float(token["z_final"]),
        )

    leading = map(candidate, outcome["traced"][: int(outcome["candidates"])])
    candidates = traced_candidates(leading, map(candidate, outcome["leaders"]))
    chosen = None if status == _NEEDS_HOST else int(outcome["token"])
    return FusedChoice(token_id=chosen, candidates=candidates)


def refusal_bits(refusal_ids: Ids, vocabulary: int) -> NDArray[np.uint32]:
    """One bit for every token of the vocabulary, the lowest id in the lowest bit of the first word.

    Raises:
        ConfigError: an id is not in the vocabulary.
    """
    if len(refusal_ids) and not 0 <= refusal_ids.min() <= refusal_ids.max() < vocabulary:
        raise ConfigError(f"refusal tokens {refusal_ids.tolist()} are not all in 0 to {vocabulary - 1}")
    bits = np.zeros(-(-vocabulary // 32) * 32, np.uint8)
    bits[refusal_ids] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def tiles_of(vocabulary: int) -> int:
    """How many blocks share a row."""
    return -(-vocabulary // TILE)


def _fill(step: NDArray[Any], settings: FusedSettings) -> None:
    sampling = settings.sampling
    step["top_p"] = sampling.top_p
    step["negated_alpha"] = -settings.alpha
    step["real_weight"] = 1 if settings.form == "difference" else 1 + settings.alpha
    step["log_beta"] = _log(settings.beta if settings.form is not None else 0.0)
    step["amount"] = settings.amount
    step["temperature"] = max(sampling.temperature, _TINY) if sampling.temperature > 0 else 0.0
    step["log_min_p"] = _log(sampling.min_p)
    # A weight of 0 leaves the real row as it is, also where the reference excludes a token.
    step["contrasts"] = settings.form is not None and np.float32(settings.alpha) != 0
    step["exempts"] = settings.shift_top_k > 0 and settings.amount > 0
    step["shift_top_k"], step["top_k"] = settings.shift_top_k, min(sampling.top_k, MAX_VOCABULARY)
    step["scales"] = sampling.temperature != 1


def _log(factor: float) -> np.float32:
    return np.float32(math.log(factor) if factor > 0 else -math.inf)
