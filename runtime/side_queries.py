"""What is asked of a bundle's model beside a reply: one position's logits, or a few greedy tokens.

The pictures' features are taken from `seen` where they are known, and kept there where not: two questions about the
same pictures encode them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safecode_trt.config import SamplingParams
from safecode_trt.errors import CapacityError
from safecode_trt.models import Features
from safecode_trt.ops.sample import make_sampler
from safecode_trt.policy.plain import PLAIN, PlainSteering
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.decode import decode
from safecode_trt.runtime.prefill import plan_prefill, run_prefill, shared_prefix
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.rows import tail_of
from safecode_trt.runtime.text_stream import TextStream

if TYPE_CHECKING:
    from safecode_trt.runtime.engine import Engine, Prefilled
    from safecode_trt.runtime.request import Request

__all__ = ["complete", "first_logits", "prefill_again", "short_answer"]

GREEDY = make_sampler(SamplingParams())


def first_logits(
    engine: Engine,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    *,
    seed: int,
    seen: dict[FeatureKey, Features] | None = None,
) -> NDArray[np.float32]:
    """The logits (V,) at the end of a prompt.

    Raises:
        PromptError: the messages cannot become a prompt, or do not fit.
    """
    request = engine.prepare(messages, images, PLAIN.plan)
    ready = engine.prefill(request, engine.features(request, seed=seed, seen=seen))
    engine.release(ready.cache)
    return ready.logits[0]


def short_answer(
    engine: Engine,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    *,
    max_new_tokens: int,
    seed: int,
    seen: dict[FeatureKey, Features] | None = None,
    check_time: Callable[[], None] = lambda: None,
) -> str:
    """The model's own greedy answer, cut after `max_new_tokens`; `check_time` may raise after each token.

    Raises:
        PromptError: the messages cannot become a prompt, or do not fit.
        SteeringError: the logits are not finite.
    """
    request = engine.prepare(messages, images, PLAIN.plan)
    ready = engine.prefill(request, engine.features(request, seed=seed, seen=seen))
    try:
        return complete(engine, request, ready, max_new_tokens=max_new_tokens, check_time=check_time)
    finally:
        engine.release(ready.cache)


def complete(
    engine: Engine,
    request: Request,
    ready: Prefilled,
    *,
    max_new_tokens: int,
    check_time: Callable[[], None],
) -> str:
    """The greedy answer to a prompt that has been prefilled, up to the end of turn, `max_new_tokens` or the room."""
    text = TextStream(engine.prompts.tokenizer)
    tokens = decode(
        ready.logits,
        plan=request.plan,
        steering=PlainSteering(),
        samplers=(GREEDY, GREEDY),
        history=(),
        session=engine.session,
        cache=ready.cache,
        builder=engine.builder,
        tail=ready.tail,
    )
    eos = engine.bundle.manifest.special_tokens.eos_token_ids
    for _ in range(max_new_tokens):
        try:
            token = next(tokens)
        except CapacityError:
            break
        if token.token_id in eos:
            break
        text.push(token.token_id)
        check_time()
    text.finish()
    return text.text.strip()


def prefill_again(
    engine: Engine, request: Request, features: dict[FeatureKey, Features], done: Request, ready: Prefilled
) -> Prefilled:
    """The prefill of a one-row `request` in the cache of a reply to `done`, from where the two prompts differ."""
    row, cache = engine.row(request, 0, features), ready.cache
    # Where the vision encoder reads the prompt, equal keys do not mean equal features.
    alike = engine.spec.words_tokenizer is None
    start = shared_prefix(done.keys[0], row.keys) if alike else 0
    cache.rewind(start)
    logits = run_prefill(plan_prefill([row.keys], [start]), [row], engine.session, cache, engine.builder)
    return replace(ready, logits=logits, tail=tail_of([row]))
