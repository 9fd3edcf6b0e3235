"""The logit operations of steered decoding in numpy: the definition that every faster twin is held against.

Knows rows of numbers and token ids; nothing of models, policies or sampling. Every function leaves its input
as it was and returns the dtype it was given. V is the vocabulary; rows hold no NaN unless a function says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ContrastForm",
    "Ids",
    "Logits",
    "argmax_lowest",
    "contrast",
    "p_unsafe",
    "plausible",
    "refusal_shift",
    "top_k_ids",
]

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
ContrastForm = Literal["difference", "vcd"]

_GROUP = 64
_PREFIX = 1024


def contrast(z_real: Logits, z_reference: Logits, alpha: float, form: ContrastForm) -> Logits:
    """Takes the logits of a reference picture away from those of the real one, row by row (..., V).

    `difference` is z - alpha z~ (arXiv 2509.19212, eq. 1); `vcd` is (1 + alpha) z - alpha z~ (arXiv
    2311.16922). alpha 0 returns z exactly. A token at -inf on the real picture stays at -inf whatever the
    reference says; one at -inf on the reference alone becomes +inf, as the formula has it.
    """
    out: Logits
    if np.float32(alpha) == 0:
        out = z_real.copy()
        return out
    with np.errstate(invalid="ignore", over="ignore"):
        out = z_reference * -alpha
        out += z_real if form == "difference" else z_real * (1 + alpha)
        # Only (-inf) - (-inf) needs repair, and a maximum finds its NaN far cheaper than a search for -inf.
        if np.isnan(out.max()):
            out[z_real == -np.inf] = -np.inf
    return out


def plausible(z_real: Logits, beta: float) -> NDArray[np.bool_]:
    """Marks the tokens (..., V) whose probability is at least beta times that of the likeliest.

    This is the adaptive plausibility constraint of arXiv 2311.16922: z >= max z + log beta. beta 0 keeps all,
    and the likeliest token is always kept.
    """
    if beta == 0:
        return np.ones(z_real.shape, np.bool_)
    kept: NDArray[np.bool_] = z_real >= z_real.max(axis=-1, keepdims=True) + np.float32(math.log(beta))
    return kept


def top_k_ids(z: Logits, k: int) -> Ids:
    """The ids of the k largest logits of every row (..., V) as (..., min(k, V)).

    They stand in falling order, and equal logits in the order of their ids.
    """
    if z.ndim == 1:
        return _top_k_ids(z, min(k, z.shape[0]))
    rows = [_top_k_ids(row, min(k, z.shape[-1])) for row in z.reshape(-1, z.shape[-1])]
    return np.array(rows, np.int64).reshape(*z.shape[:-1], -1)


def refusal_shift(
    z: Logits, refusal_ids: Sequence[int] | Ids, candidate_ids: Sequence[int] | Ids, amount: float
) -> Logits:
    """Adds `amount` to the logits (V,) of those refusal tokens that are among the candidates only."""
    out: Logits = z.copy()
    if amount != 0:
        with np.errstate(over="ignore"):
            out[np.intersect1d(refusal_ids, candidate_ids).astype(np.int64)] += np.float32(amount)
    return out


def p_unsafe(z: Logits, safe_id: int, unsafe_id: int, temperature: float = 1.0) -> float:
    """The probability of the unsafe token if only it and the safe one can come next, from one row (V,).

    Returns NaN, for the caller to reject, when it is not defined: a logit is NaN or +inf, or both are -inf.
    """
    safe, unsafe = float(z[safe_id]), float(z[unsafe_id])
    if not (safe < math.inf and unsafe < math.inf) or safe == unsafe == -math.inf:
        return math.nan
    odds = math.exp(-abs(unsafe - safe) / temperature)
    return 1 / (1 + odds) if unsafe >= safe else odds / (1 + odds)


def argmax_lowest(z: Logits) -> Ids:
    """The id of the largest logit of every row (..., V), the lowest of equal ones; NaN counts as largest."""
    return np.asarray(z.argmax(axis=-1), np.int64)


def _top_k_ids(z: Logits, k: int) -> Ids:
    if k <= 0:
        return np.empty(0, np.int64)
    level = _lower_bound(z, k)
    above = np.flatnonzero(z > level)
    if len(above) > k:
        values = z[above]
        level = np.partition(values, len(above) - k)[len(above) - k]
        above = above[values > level]
    # Only the tokens above the level need sorting; a stable sort leaves equal ones in the order of their ids.
    ids = above[np.argsort(-z[above], kind="stable")]
    if len(ids) < k:
        ids = np.concatenate([ids, _lowest_ids_at(z, level, k - len(ids))])
    return ids.astype(np.int64, copy=False)


def _lowest_ids_at(z: Logits, level: np.float32, count: int) -> Ids:
    # After a mask nearly all tokens are at -inf, and the first few hold enough of them.
    ids = np.flatnonzero(z[:_PREFIX] == level)
    return ids[:count] if len(ids) >= count else np.flatnonzero(z == level)[:count]


def _lower_bound(z: Logits, k: int) -> np.float32:
    """A number that at least k logits reach and, as a rule, few more.

    The k-th largest of the maxima of groups is one, for k groups hold a logit that large; it costs one pass
    over the vocabulary, where a selection of the k-th logit costs ten.
    """
    bound: np.float32 = np.float32(-np.inf)
    groups = len(z) // _GROUP
    if groups >= 2 * k:
        maxima = z[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        bound = np.partition(maxima, groups - k)[groups - k]
    return bound
