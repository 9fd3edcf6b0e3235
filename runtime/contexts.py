"""A plan and a request become the rows of one batch: which keys, which embeddings.

A picture's features take the places of its image tokens. Knows nothing of logits or policies' arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import Features, Layout, ModelSpec
from safecode_trt.policy.base import REAL, Context, Picture, Plan, PromptEdit
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.rows import RowPrompt

__all__ = ["FeatureKey", "edited", "feature_key", "row_keys", "row_prompt"]

FeatureKey = tuple[Picture, str | None]
"""What a row's image features depend on: the picture, and the prompt where the vision encoder reads it."""
FEATURE_STRIDE = 1 << 40


def edited(messages: Sequence[Message], edit: PromptEdit, *, system_role: bool) -> list[Message]:
    """The conversation as a prompt has it; without a `system_role` its system text heads the user's first turn."""
    *earlier, last = messages
    turns = [*earlier, replace(last, text=edit.template.replace("{request}", last.text))]
    if not edit.pictures:
        turns = [replace(turn, images=0) for turn in turns]
    if edit.system is None:
        return turns
    role = "system" if system_role else "user"
    if role == "system" and turns[0].role != "system":
        return [Message(role="system", text=edit.system), *turns]
    head = next(number for number, turn in enumerate(turns) if turn.role == role)
    turns[head] = replace(turns[head], text=f"{edit.system}\n\n{turns[head].text}")
    return turns


def feature_key(context: Context, plan: Plan, spec: ModelSpec) -> FeatureKey:
    """What the context's image features depend on; those of the cached picture on nothing of the request.

    A context whose prompt shows no picture has no features of its own; it gets those of the real row.
    """
    seen = context if plan.edit(context.prompt).pictures else REAL
    reads = spec.words_tokenizer is not None and seen.picture != "cached"
    return seen.picture, seen.prompt if reads else None


def row_keys(token_ids: NDArray[np.int64], number: int, image_token_id: int) -> NDArray[np.int64]:
    """Equal where two rows see the same: token ids, and negative numbers for the features with this `number`."""
    keys = token_ids.copy()
    places = np.flatnonzero(token_ids == image_token_id)
    keys[places] = -1 - number * FEATURE_STRIDE - np.arange(len(places))
    return keys


def row_prompt(
    token_ids: NDArray[np.int64],
    keys: NDArray[np.int64],
    features: Features,
    layouts: Sequence[Layout],
    spec: ModelSpec,
    builder: FeedBuilder,
) -> RowPrompt:
    """The row of a prompt whose pictures, laid out as `layouts`, have these features together.

    A prompt that shows no picture has features too, for families whose rows all need some.
    """
    embeds = builder.embed(token_ids)
    places = np.flatnonzero(token_ids == spec.image_token_id)
    if len(places) and "image_features" in features:
        embeds[places] = features["image_features"]
    return RowPrompt(
        keys=keys,
        embeds=embeds,
        positions=spec.positions(token_ids, layouts if len(places) else ()),
        token_inputs=spec.token_inputs(token_ids, features),
        row_inputs=spec.row_inputs(features),
    )
