"""The decode loop: a generator of tokens over the rows of a plan.

Deals in token ids and knows nothing of text; knows plans and policies and never a particular one. The rows of
contexts whose life is over are dropped by going on with the first rows of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.policy.base import Policy, Steering, StepTrace, Verdict
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rows import Tail
from safecode_trt.runtime.session import Session

__all__ = ["Sampler", "Token", "decode"]

Sampler = Callable[[NDArray[np.float32], Sequence[int]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One chosen token. `steered` says that a policy's steps are not over; the verdict is the reply's."""

    token_id: int
    steered: bool
    verdict: Verdict | None
    trace: StepTrace | None


def decode(
    first_logits: NDArray[np.float32],
    *,
    policy: Policy,
    sampler: Sampler,
    history: Sequence[int],
    session: Session,
    cache: KVCache,
    builder: FeedBuilder,
    tail: Tail,
) -> Iterator[Token]:
    """Yields tokens without end; the consumer stops. `first_logits` (C, V) are those of the prefill.

    `history` is the prompt, for the repetition penalty. A pass is run only when the next token is asked for.

    Raises:
        SteeringError: a verdict or logits cannot be trusted.
        CapacityError: the cache is full.
    """
    plan = policy.plan
    names = [context.name for context in plan.contexts]
    steering = policy.begin(dict(zip(names, first_logits, strict=True)))
    tokens = list(history)
    logits, step = first_logits, 0
    while True:
        rows = plan.rows("steered") if step < steering.steps else 1
        row, trace = _combine(steering, step, logits[:rows])
        token_id = sampler(row, tokens)
        tokens.append(token_id)
        yield Token(token_id=token_id, steered=step < steering.steps, verdict=steering.verdict, trace=trace)
        step += 1
        cache.keep(plan.rows("steered") if step < steering.steps else 1)
        cache.require(1)
        logits = session.decode(builder.step(token_id, cache, tail), cache.memory)
        cache.advance(np.ones(cache.rows, np.int64))


def _combine(
    steering: Steering, step: int, logits: NDArray[np.float32]
) -> tuple[NDArray[np.float32], StepTrace | None]:
    if step >= steering.steps:
        return logits[0], None
    combined = steering.combine(step, logits)
    return combined.logits, combined.trace
