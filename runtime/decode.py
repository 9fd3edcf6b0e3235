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
from safecode_trt.runtime.choose import Chooser, HostChooser
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rows import Tail
from safecode_trt.runtime.session import Session

__all__ = ["Token", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One chosen token. `steered` says that it belongs to steps that are counted, which a reply must get through.

    A steering of all tokens never ends, and a reply may end in it as in plain decoding.
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

    `samplers` are for the steered steps and for the rest; `history` is the prompt, for the repetition
    penalty. A pass is run only when the next token is asked for.

    Raises:
        SteeringError: the logits cannot be trusted.
        CapacityError: the cache is full.
    """
    tokens = list(history)
    rows, step = plan.rows("steered"), 0
    host = HostChooser(steering, samplers, rows=rows)
    chooser: Chooser = session.chooser(host)
    token_id, trace = host.choose(step, first_logits, tokens)
    while True:
        tokens.append(token_id)
        counted = steering.steps is not None and host.steered(step)
        yield Token(token_id=token_id, steered=counted, trace=trace)
        step += 1
        cache.keep(rows if host.steered(step) else 1)
        cache.require(1)
        logits = session.step(builder.step(token_id, cache, tail), cache.memory)
        cache.advance(np.ones(cache.rows, np.int64))
        token_id, trace = chooser.choose(step, logits, tokens)
