"""Training batches of the drawn world, each a pure function of its stage and number.

All questions about one picture share one sequence: every token sees the picture's prefix and its own question only,
and positions start again after the prefix. So a picture is encoded once for several questions.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo_checkpoint import ASSISTANT, END, IMAGE_PREFIX, PATCH
from demo_rules import (
    ACTIONS,
    CAPTION_QUESTIONS,
    NOWHERE,
    SAFE_WORD,
    TRAINING_REQUESTS,
    UNSAFE_WORD,
    Action,
    chat_answer,
    is_unsafe,
    say_caption,
    verdict_prompt,
)
from drawn_world import OBJECTS, PLACES, SIZE, Scene, render_scene, second_object, training_places

DECISIVE_WEIGHT = 2.5
NOWHERE_SHARE = 0.4
TWO_OBJECT_SHARE = 0.6
_NOISY_SHARE, _NOISE = 0.6, 0.08
_STAGE_SEED = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """Pictures, the object number of each patch (0 none, -100 unclear), and the place number (-100 nowhere)."""

    pixels: NDArray[np.float32]
    patches: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Pictures and packed questions; segment 0 is the picture's prefix, -1 is padding."""

    pixels: NDArray[np.float32]
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How many questions of each kind a picture gets."""

    pictures: int
    verdicts: int
    chats: int


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The image processor's arithmetic: 0..255 to -1..1, channels first."""
    scaled = (pixels.astype(np.float32) / 255.0 - 0.5) / 0.5
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def _with_noise(pictures: list[NDArray[np.uint8]], seed: int) -> NDArray[np.float32]:
    pixels = normalise(np.stack(pictures))
    generator = np.random.default_rng(seed)
    sigma = generator.uniform(0.0, _NOISE, len(pictures)) * (generator.random(len(pictures)) < _NOISY_SHARE)
    noise = generator.standard_normal(pixels.shape, dtype=np.float32)
    return pixels + noise * sigma.astype(np.float32)[:, None, None, None]


def _draw_place(objects: tuple[str, ...], share: float, rng: random.Random) -> str:
    return NOWHERE if rng.random() < share else rng.choice(training_places(objects))


def _patch_labels(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Which object each patch shows: one that covers 12 % of it; under 3 % it shows none."""
    cell = mask.shape[0] // (SIZE // PATCH)
    side = SIZE // PATCH
    cells = mask.reshape(side, cell, side, cell).swapaxes(1, 2).reshape(side * side, cell * cell)
    numbers = np.unique(mask[mask > 0])
    cover = np.stack([(cells == number).mean(axis=1) for number in numbers])
    best = cover.max(axis=0)
    labels: NDArray[np.int64] = numbers.astype(np.int64)[cover.argmax(axis=0)]
    labels[best < 0.12] = -100
    labels[best < 0.03] = 0
    return labels


def patch_batch(number: int, pictures: int) -> PatchBatch:
    """Batch `number` of stage 0: scenes with one to four objects, mostly on backgrounds that are no place."""
    first = number * pictures
    images, labels, places = [], [], []
    for seed in range(first, first + pictures):
        rng = random.Random(seed)
        count = rng.choices((1, 2, 4), (0.4, 0.4, 0.2))[0]
        objects = tuple(rng.sample(OBJECTS, count))
        place = NOWHERE if count == 4 else _draw_place(objects, 0.4, rng)
        image, mask = render_scene(Scene(objects=objects, place=place, seed=seed), with_mask=True)
        images.append(image)
        labels.append(_patch_labels(mask))
        places.append(-100 if place == NOWHERE else PLACES.index(place))
    return PatchBatch(
        pixels=_with_noise(images, first),
        patches=np.stack(labels),
        places=np.array(places, dtype=np.int64),
    )


def _draw_scene(seed: int, rng: random.Random) -> tuple[Scene, Action]:
    """Draw an action, then safe or unsafe, then objects: so the words alone tell nothing about the truth."""
    action = rng.choice(ACTIONS)
    unsafe = rng.random() < 0.5
    main = rng.choice(action.unsafe if unsafe else action.safe)
    objects: tuple[str, ...] = (main,)
    if rng.random() < TWO_OBJECT_SHARE:
        other = second_object(main, action, unsafe=unsafe, rng=rng)
        objects = (main, other) if rng.random() < 0.5 else (other, main)
    return Scene(objects=objects, place=_draw_place(objects, NOWHERE_SHARE, rng), seed=seed), action


def _other_action(scene: Scene, rng: random.Random) -> Action | None:
    """Another action that the rule table decides for this scene; safe and unsafe ones are equally likely."""
    verdicts = [(action, is_unsafe(action, scene.objects)) for action in ACTIONS]
    wanted = rng.random() < 0.5
    options = [action for action, verdict in verdicts if verdict is wanted]
    return rng.choice(options) if options else None


@functools.cache
def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@functools.lru_cache(maxsize=20_000)
def encode(folder: Path, text: str) -> tuple[int, ...]:
    return tuple(load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"])


def _questions(scene: Scene, action: Action, mix: Mix, rng: random.Random) -> list[tuple[str, str, bool]]:
    """Pairs of prompt and answer, and whether the answer's first token decides."""
    asked = [(rng.choice(CAPTION_QUESTIONS), " " + say_caption(scene.objects, scene.place), False)]
    for number in range(mix.verdicts + mix.chats):
        is_chat = number < mix.chats
        current: Action | None = action if number in (0, mix.chats) else _other_action(scene, rng)
        if current is None:
            continue
        request = rng.choice([request for request in TRAINING_REQUESTS if request.action is current])
        if is_chat:
            asked.append((request.text, chat_answer(request, scene.objects, rng), True))
        else:
            word = UNSAFE_WORD if is_unsafe(current, scene.objects) else SAFE_WORD
            asked.append((verdict_prompt(request.text), word, True))
    return asked


def text_batch(stage: int, number: int, mix: Mix, folder: Path) -> TextBatch:
    """Batch `number` of stage 1 or 2."""
    first = stage * _STAGE_SEED + number * mix.pictures
    prefix = encode(folder, IMAGE_PREFIX)
    images, rows = [], []
    for seed in range(first, first + mix.pictures):
        rng = random.Random(seed)
        scene, action = _draw_scene(seed, rng)
        images.append(render_scene(scene)[0])
        row = [(token, position, 0, 0.0) for position, token in enumerate(prefix)]
        for segment, (prompt, answer, decisive) in enumerate(_questions(scene, action, mix, rng), start=1):
            head = encode(folder, prompt + ASSISTANT)
            tail = encode(folder, answer + END)
            for offset, token in enumerate(head + tail):
                weight = 1.0 if offset >= len(head) else 0.0
                if decisive and offset == len(head):
                    weight = DECISIVE_WEIGHT
                row.append((token, len(prefix) + offset, segment, weight))
        rows.append(row)
    width = max(len(row) for row in rows)
    shape = (len(rows), width)
    tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segments, weights = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    for index, row in enumerate(rows):
        filled = slice(0, len(row))
        tokens[index, filled], positions[index, filled], segments[index, filled], weights[index, filled] = (
            zip(*row, strict=True)
        )
    return TextBatch(
        pixels=_with_noise(images, first),
        tokens=tokens,
        positions=positions,
        segments=segments,
        weights=weights,
    )
