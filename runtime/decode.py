"""The decode loop: a generator of tokens over the rows of a plan.

Deals in token ids and knows nothing of text; knows plans and policies and never a particular one. The rows of
contexts whose life is over are dropped by going on with the first rows of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.ops.sample import Sampler
from safecode_trt.policy.base import Plan, Steering, StepTrace
from safecode_trt.policy.plain import PlainSteering
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rows import Tail
from safecode_trt.runtime.session import HostLogits, Session, StepLogits

__all__ = ["Token", "decode"]

PLAIN_STEERING = PlainSteering()


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
    logits: StepLogits = HostLogits(first_logits)
    step = 0

    def steered() -> bool:
        return steering.steps is None or step < steering.steps

    while True:
        was_steered = steered()
        acting, sampler = (steering, samplers[0]) if was_steered else (PLAIN_STEERING, samplers[1])
        token_id, trace = _choose(logits, acting, sampler, step, tokens, rows=plan.rows("steered"))
        tokens.append(token_id)
        counted = was_steered and steering.steps is not None
        yield Token(token_id=token_id, steered=counted, trace=trace if was_steered else None)
        step += 1
        cache.keep(plan.rows("steered") if steered() else 1)
        cache.require(1)
        logits = session.step(builder.step(token_id, cache, tail), cache.memory)
        cache.advance(np.ones(cache.rows, np.int64))


def _choose(
    logits: StepLogits, steering: Steering, sampler: Sampler, step: int, tokens: Sequence[int], *, rows: int
) -> tuple[int, StepTrace | None]:
    """The next token and its trace: chosen where the logits are, or from the first `rows` of them on the host."""
    uniform, fused = sampler.uniform(), steering.fused(step, sampler.params)
    choice = None if fused is None else logits.choose(fused, uniform)
    if choice is not None and choice.token_id is not None:
        return choice.token_id, StepTrace(step=step, candidates=choice.candidates)
    combined = steering.combine(step, logits.fetch()[:rows])
    return sampler(combined.logits, tokens, uniform), combined.trace
