"""A request made ready: pictures opened, prompts tokenised, passes planned, room checked; nothing computed yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safecode_trt.errors import CapacityError, PromptError
from safecode_trt.models import Layout, ModelSpec
from safecode_trt.policy.base import Plan
from safecode_trt.runtime.contexts import FeatureKey, edited, feature_key, row_keys
from safecode_trt.runtime.prefill import PrefillPlan, plan_prefill
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.runtime.session import Prefix

__all__ = ["PrefixKey", "Request", "as_messages", "prepare"]

PrefixKey = bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a reply starts from. `prefixes` are kept keys and values by row; `prefill` counts on them.

    `feature_keys` and `keys` are by row, `tokens` and `words` by prompt; the latter are for a vision encoder that reads
    them. `prefix_keys` name what is worth keeping.
    """

    plan: Plan
    images: tuple[Image.Image, ...]
    layouts: tuple[Layout, ...]
    feature_keys: tuple[FeatureKey, ...]
    keys: tuple[NDArray[np.int64], ...]
    tokens: Mapping[str, NDArray[np.int64]]
    words: Mapping[str, NDArray[np.int64]]
    prefix_keys: Mapping[int, tuple[int, PrefixKey]]
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


def _prefix_key(
    token_ids: NDArray[np.int64], seen: FeatureKey, layouts: Sequence[Layout], image_token_id: int
) -> tuple[int, PrefixKey] | None:
    """Length and identity of the prefix of a row that does not depend on the request, if there is one.

    Only a cached picture makes one worth keeping: the prompt up to its last image token. Positions, and how its
    features are laid out, are a matter of the grids and not of their number of tokens alone.
    """
    places = np.flatnonzero(token_ids == image_token_id)
    if seen[0] != "cached" or not len(places):
        return None
    length = min(int(places[-1]) + 1, len(token_ids) - 1)
    keys = row_keys(token_ids[:length], 0, image_token_id)
    grids = [(layout.rows, layout.columns, layout.size) for layout in layouts]
    return length, keys.tobytes() + repr(grids).encode()


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
        PromptError: the messages cannot become a prompt, or show more pictures than the model takes.
        CapacityError: the prompt and one new token do not fit into `capacity` positions.
    """
    spec.require_pictures(len(images))
    layouts = tuple(spec.layout(image.width, image.height) for image in images)
    asked = {
        name: edited(messages, plan.edit(name), system_role=prompts.system_role)
        for name in dict.fromkeys(context.prompt for context in plan.contexts)
    }
    tokens = {
        name: prompts.encode(turns, layouts if plan.edit(name).pictures else ())
        for name, turns in asked.items()
    }
    feature_keys = tuple(feature_key(context, plan, spec) for context in plan.contexts)
    # Without a picture nobody reads the words.
    read = {prompt for _, prompt in feature_keys if prompt is not None} if images else set()
    words = {name: prompts.words(turns) for name, turns in asked.items() if name in read}
    numbers = {seen: number for number, seen in enumerate(dict.fromkeys(feature_keys))}
    keys, prefixes, prefix_keys = [], {}, {}
    for row, (context, seen) in enumerate(zip(plan.contexts, feature_keys, strict=True)):
        token_ids = tokens[context.prompt]
        keys.append(row_keys(token_ids, numbers[seen], spec.image_token_id))
        known = _prefix_key(token_ids, seen, layouts, spec.image_token_id)
        if known is not None:
            prefix_keys[row] = known
            if (prefix := kept(known[1])) is not None:
                prefixes[row] = prefix
    done = [prefixes[row].length if row in prefixes else 0 for row in range(len(keys))]
    prefill = plan_prefill(keys, done)
    if prefill.capacity >= capacity:
        shown = sum(layout.tokens for layout in layouts)
        many = shown > prefill.capacity // 2
        helps = (
            "show fewer or smaller pictures, or export with a lower --max-tiles or"
            if many
            else "shorten it, or export with"
        )
        raise CapacityError(
            f"the prompt needs {prefill.capacity} positions and an answer at least 1 more, but the bundle holds "
            f"{capacity}{f'; its pictures take {shown} of them' if many else ''}",
            fix=f"{helps} a larger --context-length",
        )
    return Request(
        plan=plan,
        images=tuple(images),
        layouts=layouts,
        feature_keys=feature_keys,
        keys=tuple(keys),
        tokens=tokens,
        words=words,
        prefix_keys=prefix_keys,
        prefixes=prefixes,
        prefill=prefill,
    )
