"""A request made ready: pictures opened, prompts tokenised, passes planned, room checked; nothing computed yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safecode_trt.errors import CapacityError, PromptError
from safecode_trt.models import ModelSpec, Tiling
from safecode_trt.policy.base import Context, Plan, Prompt
from safecode_trt.runtime.contexts import judge_messages, row_keys
from safecode_trt.runtime.prefill import PrefillPlan, plan_prefill
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.runtime.session import Prefix

__all__ = ["PrefixKey", "Request", "as_messages", "prefix_key", "prepare"]

PrefixKey = bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a reply starts from. `prefixes` are kept keys and values by row; `prefill` counts on them."""

    plan: Plan
    images: tuple[Image.Image, ...]
    tilings: tuple[Tiling, ...]
    tokens: Mapping[Prompt, NDArray[np.int64]]
    prefixes: Mapping[int, Prefix]
    prefill: PrefillPlan


def as_messages(prompt: str | Sequence[Message], images: int) -> list[Message]:
    """A single request as a conversation of one turn that shows all pictures.

    Raises:
        PromptError: the last message is not a user's, is empty, or the pictures do not match.
    """
    single = [Message(role="user", text=prompt, images=images)] if isinstance(prompt, str) else list(prompt)
    if not single or single[-1].role != "user" or not single[-1].text.strip():
        raise PromptError("the request is empty; expected the user's words as the last message")
    places = sum(message.images for message in single)
    if places != images:
        raise PromptError(f"the messages show {places} pictures, but {images} were given")
    return single


def prefix_key(context: Context, token_ids: NDArray[np.int64], image_token_id: int) -> tuple[int, PrefixKey]:
    """Length and identity of the prefix of a row that does not depend on the request, 0 if there is none.

    Only a cached picture makes one worth keeping: the prompt up to its last image token.
    """
    places = np.flatnonzero(token_ids == image_token_id)
    if context.picture != "cached" or not len(places):
        return 0, b""
    length = min(int(places[-1]) + 1, len(token_ids) - 1)
    return length, row_keys(token_ids[:length], context.picture, image_token_id).tobytes()


def prepare(
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    *,
    plan: Plan,
    prompts: PromptBuilder,
    spec: ModelSpec,
    capacity: int,
    kept: Callable[[PrefixKey], Prefix | None],
) -> Request:
    """Plans a reply.

    Raises:
        PromptError: the messages cannot become a prompt.
        CapacityError: the prompt and one new token do not fit into `capacity` positions.
    """
    tilings = tuple(spec.tiling(image.width, image.height) for image in images)
    tokens: dict[Prompt, NDArray[np.int64]] = {"request": prompts.encode(messages, tilings)}
    if any(context.prompt == "judge" for context in plan.contexts):
        tokens["judge"] = prompts.encode(judge_messages(messages, plan.judge_template), tilings)
    keys, prefixes = [], {}
    for row, context in enumerate(plan.contexts):
        token_ids = tokens[context.prompt]
        keys.append(row_keys(token_ids, context.picture, spec.image_token_id))
        length, key = prefix_key(context, token_ids, spec.image_token_id)
        if length and (prefix := kept(key)) is not None:
            prefixes[row] = prefix
    done = [prefixes[row].length if row in prefixes else 0 for row in range(len(keys))]
    prefill = plan_prefill(keys, done)
    if prefill.capacity >= capacity:
        raise CapacityError(
            f"the prompt needs {prefill.capacity} positions and an answer at least 1 more, but the bundle holds "
            f"{capacity}; shorten it, or export with a larger --context-length"
        )
    return Request(
        plan=plan,
        images=tuple(images),
        tilings=tilings,
        tokens=tokens,
        prefixes=prefixes,
        prefill=prefill,
    )
