"""The decode loop: a generator of tokens over the rows of a plan.

Deals in token ids and knows nothing of text; knows plans and policies and never a particular one. The rows of
contexts whose life is over are dropped by going on with the first rows of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.policy.base import Plan, Steering, StepTrace
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rows import Tail
from safecode_trt.runtime.session import Session

__all__ = ["Sampler", "Token", "decode"]

Sampler = Callable[[NDArray[np.float32], Sequence[int]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One chosen token. `steered` says that it belongs to steps that are counted, which a reply must get through.

    A steering of all tokens is never through, and a reply may end in it as in plain decoding.
    """

    token_id: int
    steered: bool
    trace: StepTrace | None


def decode(
    first_logits: NDArray[np.float32],
    *,
    plan: Plan,
    steering: Steering,
    samplers: tuple[Sampler, Sampler],
    history: Sequence[int],
    session: Session,
    cache: KVCache,
    builder: FeedBuilder,
    tail: Tail,
) -> Iterator[Token]:
    """Yields tokens without end; the consumer stops. `first_logits` (C, V) are those of the prefill.

    `samplers` are for the steered steps and for those behind them; `history` is the prompt, for the repetition
    penalty. A pass is run only when the next token is asked for.

    Raises:
        SteeringError: the logits cannot be trusted.
        CapacityError: the cache is full.
    """
    tokens = list(history)
    logits, step = first_logits, 0

    def steered() -> bool:
        return steering.steps is None or step < steering.steps

    while True:
        row, trace = logits[0], None
        if was_steered := steered():
            combined = steering.combine(step, logits[: plan.rows("steered")])
            row, trace = combined.logits, combined.trace
        token_id = samplers[0 if was_steered else 1](row, tokens)
        tokens.append(token_id)
        yield Token(token_id=token_id, steered=was_steered and steering.steps is not None, trace=trace)
        step += 1
        cache.keep(plan.rows("steered") if steered() else 1)
        cache.require(1)
        logits = session.decode(builder.step(token_id, cache, tail), cache.memory)
        cache.advance(np.ones(cache.rows, np.int64))
