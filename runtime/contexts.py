"""A plan and a request become the rows of one batch: which keys, which embeddings.

A picture's features take the places of its image tokens. Knows nothing of logits or policies' arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from safecode_trt.policy.base import Context, Picture, Plan, Prompt
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.prefill import RowPrompt
from safecode_trt.runtime.prompt import Message

__all__ = ["PICTURES", "judge_messages", "row_keys", "row_prompts"]

PICTURES: tuple[Picture, ...] = ("real", "noised", "cached")
FEATURE_STRIDE = 1 << 40


def judge_messages(messages: Sequence[Message], template: str) -> list[Message]:
    """The conversation with its last request put into the judge's question."""
    *earlier, last = messages
    return [*earlier, replace(last, text=template.replace("{request}", last.text))]


def row_keys(token_ids: NDArray[np.int64], picture: Picture, image_token_id: int) -> NDArray[np.int64]:
    """Equal where two rows see the same: token ids, and negative numbers for the features of a picture."""
    keys = token_ids.copy()
    places = np.flatnonzero(token_ids == image_token_id)
    keys[places] = -1 - PICTURES.index(picture) * FEATURE_STRIDE - np.arange(len(places))
    return keys


def row_prompts(
    plan: Plan,
    tokens: Mapping[Prompt, NDArray[np.int64]],
    features: Mapping[Picture, NDArray[np.float32]],
    image_token_id: int,
    builder: FeedBuilder,
) -> list[RowPrompt]:
    """The rows of a plan: `features[picture]` is (image tokens, E) for every picture that the plan shows."""
    return [
        _row(context, tokens[context.prompt], features, image_token_id, builder) for context in plan.contexts
    ]


def _row(
    context: Context,
    token_ids: NDArray[np.int64],
    features: Mapping[Picture, NDArray[np.float32]],
    image_token_id: int,
    builder: FeedBuilder,
) -> RowPrompt:
    embeds = builder.embed(token_ids)
    places = np.flatnonzero(token_ids == image_token_id)
    if len(places):
        embeds[places] = features[context.picture]
    return RowPrompt(keys=row_keys(token_ids, context.picture, image_token_id), embeds=embeds)
