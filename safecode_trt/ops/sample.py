"""From one row of logits to one token: the filters of sampling, and the sampler that a reply draws with.

Knows token ids and nothing of text. The order is that of transformers and vLLM: repetition penalty,
temperature, top-k, top-p, min-p, draw. Filters are pure; what one excludes is at -inf, and a token always
remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from safecode_trt.config import SamplingParams
from safecode_trt.errors import SteeringError
from safecode_trt.ops.reference import Logits, argmax_lowest, plausible, top_k_ids

__all__ = [
    "Sampler",
    "apply_min_p",
    "apply_repetition_penalty",
    "apply_temperature",
    "apply_top_k",
    "apply_top_p",
    "draw",
    "make_sampler",
]

_BLOCK = 256
_TINY = float(np.finfo(np.float32).tiny)


def apply_repetition_penalty(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """Makes tokens of `history` less likely: divides positive logits (V,) by the penalty, multiplies others.

    As in transformers, the history is all text before the token, the prompt's included. Ids outside the
    vocabulary are passed over. arXiv 1909.05858.
    """
    out: Logits = logits.copy()
    ids = np.asarray(history, np.int64)
    ids = ids[(ids >= 0) & (ids < len(logits))]
    seen = logits[ids]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        out[ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
    return out


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """Flattens (above 1) or sharpens (below 1) the distribution of a row (V,).

    Returns (z - max z) / temperature: the distribution of z / temperature, without its overflow.
    """
    with np.errstate(over="ignore"):
        out: Logits = (logits - logits.max()) / np.float32(max(temperature, _TINY))
    return out


def apply_top_k(logits: Logits, k: int) -> Logits:
    """Keeps the k largest logits of a row (V,) and, as transformers does, those equal to the k-th."""
    smallest = logits[top_k_ids(logits, k)[-1]]
    return np.where(logits >= smallest, logits, np.float32(-np.inf))


def apply_top_p(logits: Logits, p: float) -> Logits:
    """Keeps the fewest leading tokens of a row (V,) whose probabilities add up to p; arXiv 1904.09751.

    Of equal tokens the lower ids are kept first.
    """
    weights = np.exp(logits - logits.max())
    wanted = p * float(weights.sum(dtype=np.float64))
    size, leading = 32, top_k_ids(logits, 32)
    mass = np.cumsum(weights[leading], dtype=np.float64)
    # Few tokens hold most of the mass as a rule, so the vocabulary is never sorted unless it must be.
    while mass[-1] < wanted and len(leading) < len(logits):
        size *= 16
        leading = top_k_ids(logits, size)
        mass = np.cumsum(weights[leading], dtype=np.float64)
    kept = leading[: int(np.searchsorted(mass, wanted)) + 1]
    out = np.full_like(logits, -np.inf)
    out[kept] = logits[kept]
    return out


def apply_min_p(logits: Logits, min_p: float) -> Logits:
    """Keeps the tokens of a row (V,) at least min_p times as likely as the likeliest; arXiv 2407.01082."""
    return np.where(plausible(logits, min_p), logits, np.float32(-np.inf))


def draw(logits: Logits, uniform: float) -> int:
    """The token at which the cumulative probability of a row (V,), in the order of the ids, passes `uniform`.

    `uniform` is at least 0 and below 1. A token at -inf is never drawn.
    """
    weights = np.exp(logits - logits.max())
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    block, rest = _pass(sums, uniform * float(sums.sum(dtype=np.float64)))
    start = block * _BLOCK
    return start + _pass(weights[start : start + _BLOCK], rest)[0]


class Sampler:
    """Chooses the tokens of one reply. It carries the random state: `make_sampler` makes one per reply."""

    __slots__ = ("_filters", "_random", "params")

    def __init__(
        self,
        params: SamplingParams,
        filters: tuple[Callable[[Logits], Logits], ...],
        random: np.random.Generator | None,
    ) -> None:
        self.params = params
        self._filters = filters
        self._random = random

    def uniform(self) -> float:
        """The random number of the next token; 0 if none is drawn."""
        return 0.0 if self._random is None else float(self._random.random())

    def __call__(self, logits: Logits, history: Sequence[int], uniform: float | None = None) -> int:
        """Chooses from a row (V,); `history` is every token id so far, the prompt's included.

        `uniform` is what `uniform()` gave for this token, by default what it gives now.

        Raises:
            SteeringError: a logit is NaN or +inf, or no token is left.
        """
        _check(logits)
        if self.params.repetition_penalty != 1:
            logits = apply_repetition_penalty(logits, history, self.params.repetition_penalty)
            _check(logits)
        for apply in self._filters:
            logits = apply(logits)
        if self._random is None:
            return int(argmax_lowest(logits))
        return draw(logits, self.uniform() if uniform is None else uniform)


def make_sampler(params: SamplingParams, random: np.random.Generator | None = None) -> Sampler:
    """The sampler of one reply, with only the operations that `params` ask for.

    Temperature 0 takes the likeliest token after the repetition penalty, the lowest id of equal ones. Else
    each token takes one number of `random`, by default of PCG64(seed): the same seed and the same logits give the
    same tokens.
    """
    if params.temperature == 0:
        return Sampler(params, (), None)
    filters: list[Callable[[Logits], Logits]] = []
    if params.temperature != 1:
        filters.append(partial(apply_temperature, temperature=params.temperature))
    if params.top_k > 0:
        filters.append(partial(apply_top_k, k=params.top_k))
    if params.top_p < 1:
        filters.append(partial(apply_top_p, p=params.top_p))
    if params.min_p > 0:
        filters.append(partial(apply_min_p, min_p=params.min_p))
    if random is None:
        random = np.random.Generator(np.random.PCG64(params.seed))
    return Sampler(params, tuple(filters), random)


def _check(logits: Logits) -> None:
    # The maximum is NaN if any logit is, +inf if any is, and -inf only if all are.
    if not math.isfinite(logits.max()):
        raise SteeringError("the logits hold NaN or infinity, or leave no token to choose from")


def _pass(weights: Logits, target: float) -> tuple[int, float]:
    """Where the running sum of the weights passes the target, and how much of the target is left there."""
    sums = np.cumsum(weights, dtype=np.float64)
    # Rounding may put the target at or above the total; the last weight above 0 is meant then.
    index = min(int(np.searchsorted(sums, target, side="right")), int(np.searchsorted(sums, sums[-1])))
    return index, target - (float(sums[index - 1]) if index else 0.0)
