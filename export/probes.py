"""The questions that an export is tested with: drawn pictures and prompts, the same every time. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import ModelSpec, Tiling
from safecode_trt.runtime.image import noise_picture, normalise
from safecode_trt.runtime.prompt import Message, PromptBuilder

__all__ = ["Probe", "make_probes"]

LED = 24
QUESTIONS = (
    "What is in the picture?",
    "Describe the scene in one sentence, please.",
    "Which colours do you see, and where are they?",
    "Is there anything here that could hurt a child if nobody watched it?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A normalised picture (1, 3, S, S) and the token ids (n,) of a prompt that shows it.

    `image_places` are the positions of its image tokens; the last `led` tokens of the prompt, all of them
    text, are compared one by one.
    """

    pixel_values: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    image_places: NDArray[np.int64]
    led: int


def make_probes(spec: ModelSpec, prompts: PromptBuilder) -> tuple[Probe, ...]:
    """The probes for a model."""
    # The whole picture as one tile: it needs no resizing, and every family has this form.
    whole = Tiling(resizes=(), rows=0, columns=0, tile=spec.image_size)
    probes = []
    for seed, question in enumerate(QUESTIONS):
        token_ids = prompts.encode([Message(role="user", text=question, images=1)], [whole])
        places = np.flatnonzero(token_ids == spec.image_token_id)
        probe = Probe(
            pixel_values=normalise(_picture(spec.image_size, seed), spec),
            token_ids=token_ids,
            image_places=places,
            led=min(LED, len(token_ids) - 1 - int(places.max())),
        )
        probes.append(probe)
    return tuple(probes)


def _picture(size: int, seed: int) -> NDArray[np.float32]:
    """(1, S, S, 3): a slanted gradient with coloured boxes; the last is noise."""
    if seed == len(QUESTIONS) - 1:
        return noise_picture(size, 0.5, seed)
    draw = np.random.Generator(np.random.PCG64(seed))
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    slope = draw.uniform(0, 0.5, (2, 3)).astype(np.float32)
    picture = ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]
    for _ in range(4):
        top, left = draw.integers(0, max(size * 3 // 4, 1), 2)
        height, width = draw.integers(max(size // 8, 1), max(size // 2, 2), 2)
        picture[top : top + height, left : left + width] = draw.uniform(0, 1, 3)
    return picture[None]
