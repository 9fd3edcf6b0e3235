"""A plan and a request become the rows of one batch: which keys, which embeddings.

A picture's features take the places of its image tokens. Knows nothing of logits or policies' arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import Features, Layout, ModelSpec
from safecode_trt.policy.base import Context, Picture, Prompt
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.rows import RowPrompt

__all__ = ["Look", "judge_messages", "look_of", "row_keys", "row_prompt"]

Look = tuple[Picture, Prompt | None]
"""What a row's image features depend on: the picture, and the prompt where the vision encoder reads it."""
PICTURES: tuple[Picture, ...] = ("real", "noised", "cached")
PROMPTS: tuple[Prompt | None, ...] = (None, "request", "judge")
FEATURE_STRIDE = 1 << 40


def judge_messages(messages: Sequence[Message], template: str) -> list[Message]:
    """The conversation with its last request put into the judge's question."""
    *earlier, last = messages
    return [*earlier, replace(last, text=template.replace("{request}", last.text))]


def look_of(context: Context, spec: ModelSpec) -> Look:
    """What the context's image features depend on; those of the cached picture on nothing of the request."""
    reads = spec.words_tokenizer is not None and context.picture != "cached"
    return context.picture, context.prompt if reads else None


def row_keys(token_ids: NDArray[np.int64], look: Look, image_token_id: int) -> NDArray[np.int64]:
    """Equal where two rows see the same: token ids, and negative numbers for the features of a look."""
    picture, prompt = look
    number = PICTURES.index(picture) + len(PICTURES) * PROMPTS.index(prompt)
    keys = token_ids.copy()
    places = np.flatnonzero(token_ids == image_token_id)
    keys[places] = -1 - number * FEATURE_STRIDE - np.arange(len(places))
    return keys


def row_prompt(
    token_ids: NDArray[np.int64],
    look: Look,
    features: Features,
    layouts: Sequence[Layout],
    spec: ModelSpec,
    builder: FeedBuilder,
) -> RowPrompt:
    """The row of a prompt whose pictures, laid out as `layouts`, have these features together."""
    embeds = builder.embed(token_ids)
    if "image_features" in features:
        embeds[np.flatnonzero(token_ids == spec.image_token_id)] = features["image_features"]
    return RowPrompt(
        keys=row_keys(token_ids, look, spec.image_token_id),
        embeds=embeds,
        positions=spec.positions(token_ids, layouts),
        token_inputs=spec.token_inputs(token_ids, features),
        row_inputs=spec.row_inputs(features),
    )
