"""The questions that an export is tested with, the same every time: prompts, and pictures that are drawn. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import Layout, ModelSpec
from safecode_trt.runtime.image import noise_views, normalise
from safecode_trt.runtime.image_features import PictureInput
from safecode_trt.runtime.prompt import Message, PromptBuilder

__all__ = ["Probe", "TextProbe", "make_probes"]

LED = 24
QUESTIONS = (
    "What is in the picture?",
    "Describe the scene in one sentence, please.",
    "Which colours do you see, and where are they?",
    "Is there anything here that could hurt a child if nobody watched it?",
)
TEXT_QUESTIONS = (
    "What is the capital of France?",
    "Describe a kitchen in one sentence, please.",
    "Which colours does a rainbow have, and in which order?",
    "Is there anything in a garden that could hurt a child if nobody watched it?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextProbe:
    """The token ids (n,) of a prompt. Its last `led` tokens, all of them text, are compared one by one."""

    token_ids: NDArray[np.int64]
    led: int

    @property
    def pictures(self) -> tuple[PictureInput, ...]:
        """What the prompt shows."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(TextProbe):
    """A prompt that shows a drawn picture."""

    picture: PictureInput

    @property
    def pictures(self) -> tuple[PictureInput, ...]:
        return (self.picture,)


def make_probes(
    spec: ModelSpec, prompts: PromptBuilder, layouts: Sequence[Layout] | None = None
) -> Sequence[TextProbe]:
    """The probes for a model: one for each layout, by default the reference layout every time.

    A text-only model gets as many questions without pictures.
    """
    if spec.text_only:
        asked = (prompts.encode([Message(role="user", text=text)], []) for text in TEXT_QUESTIONS)
        return [TextProbe(token_ids=ids, led=min(LED, len(ids))) for ids in asked]
    probes = []
    for seed, layout in enumerate(layouts or [spec.reference_layout] * len(QUESTIONS)):
        messages = [Message(role="user", text=QUESTIONS[seed % len(QUESTIONS)], images=1)]
        token_ids = prompts.encode(messages, [layout])
        last_image = int(np.flatnonzero(token_ids == spec.image_token_id).max())
        picture = PictureInput(
            layout=layout,
            views=normalise(_views(layout, seed), spec),
            words=prompts.words(messages) if spec.words_tokenizer else None,
        )
        led = min(LED, len(token_ids) - 1 - last_image)
        probes.append(Probe(picture=picture, token_ids=token_ids, led=led))
    return probes


def _views(layout: Layout, seed: int) -> list[NDArray[np.float32]]:
    """Slanted gradients with coloured boxes (height, width, 3); the last picture is noise."""
    if seed == len(QUESTIONS) - 1:
        return noise_views(layout, 0.5, seed)
    draw = np.random.Generator(np.random.PCG64(seed))
    views = []
    for width, height in (view.size for view in layout.views):
        down, along = (np.linspace(0, 1, size, dtype=np.float32) for size in (height, width))
        slope = draw.uniform(0, 0.5, (2, 3)).astype(np.float32)
        view = down[:, None, None] * slope[0] + along[None, :, None] * slope[1]
        for _ in range(4):
            top, left = draw.integers(0, max(height * 3 // 4, 1)), draw.integers(0, max(width * 3 // 4, 1))
            tall, wide = draw.integers(max(height // 8, 1), max(height // 2, 2), 2)
            view[top : top + tall, left : left + wide] = draw.uniform(0, 1, 3)
        views.append(view)
    return views
