"""Short questions to a bundle's model next to a reply: one position's logits, or a few greedy tokens.

The pictures' features are taken from `known` where they are there, and kept there where not: two questions about the
same pictures encode them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safecode_trt.config import SamplingParams
from safecode_trt.deadline import Deadline
from safecode_trt.errors import CapacityError
from safecode_trt.models import Features
from safecode_trt.ops.sample import make_sampler
from safecode_trt.policy.plain import PLAIN, PlainSteering
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.decode import decode
from safecode_trt.runtime.model import Model, Prefilled
from safecode_trt.runtime.prefill import plan_prefill, run_prefill, shared_prefix
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.request import Request
from safecode_trt.runtime.rows import tail_of
from safecode_trt.runtime.text_stream import TextStream

__all__ = ["complete", "first_logits", "prefill_again", "short_answer"]

GREEDY = make_sampler(SamplingParams())


def first_logits(
    model: Model,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    *,
    seed: int,
    known: dict[FeatureKey, Features] | None = None,
) -> NDArray[np.float32]:
    """The logits (V,) at the end of a prompt.

    Raises:
        PromptError: the messages cannot become a prompt, or do not fit.
    """
    request = model.prepare(messages, images, PLAIN.plan)
    ready = model.prefill(request, model.features(request, seed=seed, known=known))
    model.release(ready.cache)
    return ready.logits[0]


def short_answer(
    model: Model,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    *,
    max_new_tokens: int,
    seed: int,
    known: dict[FeatureKey, Features] | None = None,
    deadline: Deadline | None = None,
) -> str:
    """The model's own greedy answer, cut after `max_new_tokens`; `deadline` is checked after each token.

    Raises:
        PromptError: the messages cannot become a prompt, or do not fit.
        SteeringError: the logits are not finite.
    """
    request = model.prepare(messages, images, PLAIN.plan)
    ready = model.prefill(request, model.features(request, seed=seed, known=known))
    try:
        return complete(model, request, ready, max_new_tokens=max_new_tokens, deadline=deadline or Deadline())
    finally:
        model.release(ready.cache)


def complete(
    model: Model,
    request: Request,
    ready: Prefilled,
    *,
    max_new_tokens: int,
    deadline: Deadline,
) -> str:
    """The greedy answer to a prompt that has been prefilled, up to the end of turn, `max_new_tokens` or the room."""
    text = TextStream(model.prompts.tokenizer)
    tokens = decode(
        ready.logits,
        plan=request.plan,
        steering=PlainSteering(),
        samplers=(GREEDY, GREEDY),
        history=(),
        session=model.session,
        cache=ready.cache,
        builder=model.builder,
        tail=ready.tail,
    )
    eos = model.bundle.manifest.special_tokens.eos_token_ids
    for _ in range(max_new_tokens):
        try:
            token = next(tokens)
        except CapacityError:
            break
        if token.token_id in eos:
            break
        text.push(token.token_id)
        deadline.check("a short answer")
    text.finish()
    return text.text.strip()


def prefill_again(
    model: Model, request: Request, features: dict[FeatureKey, Features], done: Request, ready: Prefilled
) -> Prefilled:
    """The prefill of a one-row `request` in the cache of a reply to `done`, from where the two prompts differ."""
    row, cache = model.row(request, 0, features), ready.cache
    # Where the vision encoder reads the prompt, equal keys do not mean equal features.
    alike = model.spec.words_tokenizer is None
    start = shared_prefix(done.keys[0], row.keys) if alike else 0
    cache.rewind(start)
    logits = run_prefill(plan_prefill([row.keys], [start]), [row], model.session, cache, model.builder)
    return replace(ready, logits=logits, tail=tail_of([row]))
