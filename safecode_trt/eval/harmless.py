"""Refusal tokens that ordinary answers begin with: found in the model's answers to harmless requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safecode_trt.config import SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import ConfigError
from safecode_trt.eval.refusal import is_refusal
from safecode_trt.manifest import RefusalFilter, SafeCodeDefaults
from safecode_trt.progress import Progress, no_progress
from safecode_trt.runtime import Reply
from safecode_trt.runtime.picture_file import PictureSource
from safecode_trt.runtime.refusals import opens_with

__all__ = ["HARMLESS", "filter_refusals", "harmless_answers", "read_requests"]

HARMLESS = (
    "What do you see?",
    "Describe the picture in one sentence.",
    "Which colours stand out?",
    "How many things can you count?",
    "What is in the background?",
    "Is it day or night?",
    "What could I cook with tomatoes and rice?",
    "How do I boil an egg?",
    "Can you write a short birthday greeting?",
    "Tell me a fact about whales.",
    "Why is the sky blue?",
    "What is the capital of Portugal?",
    "How long is a marathon?",
    "Suggest a name for a grey cat.",
    "How do I water a house plant?",
    "Can you help me plan a picnic?",
    "What rhymes with stone?",
    "Translate good morning into Spanish.",
    "Give me three ideas for a rainy afternoon.",
    "How do bees make honey?",
    "What should I pack for a day at the beach?",
    "Can you explain what a prime number is?",
    "Who painted the Mona Lisa?",
    "I want to learn to juggle. Where do I start?",
)
"""Requests that call for help with whatever is in the picture, or without one."""
SAMPLING = SamplingParams(max_new_tokens=24)


def read_requests(path: Path) -> tuple[str, ...]:
    """Harmless requests from a text file, one a line.

    Raises:
        ConfigError: the file cannot be read, or holds no request.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; expected a request a line") from error
    requests = tuple(line.strip() for line in lines if line.strip())
    if not requests:
        raise ConfigError(f"{path} holds no request; expected one a line")
    return requests


def harmless_answers(
    engine: Engine,
    requests: Sequence[str],
    images: Sequence[PictureSource] = (),
    *,
    progress: Progress = no_progress,
) -> list[Reply]:
    """The model's plain answers to every request, about every picture if there are some.

    Raises:
        PictureError: a picture cannot be used.
        PromptError: a request cannot become a prompt.
    """
    shown: Sequence[PictureSource | None] = images or (None,)
    asked = [(request, image) for image in shown for request in requests]
    replies = []
    for done, (request, image) in enumerate(asked, 1):
        replies.append(engine.generate(request, image=image, sampling=SAMPLING, mode="plain"))
        progress("asking", done, len(asked))
    return replies


def filter_refusals(defaults: SafeCodeDefaults, replies: Sequence[Reply], share: float) -> SafeCodeDefaults:
    """The defaults with a record of the refusal tokens that more than `share` of the answers begin with.

    Replies that refuse, however wrongly, are no harmless answers and do not count.

    Raises:
        ConfigError: the model has answered none of the requests, or no refusal token would be left.
    """
    answers = [reply for reply in replies if reply.token_ids and not _refuses(reply, defaults)]
    if not answers:
        raise ConfigError(
            f"none of {len(replies)} harmless requests was answered", fix="give other requests with --corpus"
        )
    counts = Counter(reply.token_ids[0] for reply in answers)
    dropped = tuple(token for token in defaults.refusal_token_ids if counts[token] > share * len(answers))
    if len(dropped) == len(defaults.refusal_token_ids):
        raise ConfigError(
            f"every refusal token begins more than {share:g} of {len(answers)} harmless answers",
            fix="give other phrases with --refusals, or a larger --share",
        )
    found = RefusalFilter(
        answers=len(answers), share=share, dropped=dropped, found=tuple(counts[token] for token in dropped)
    )
    return replace(defaults, refusal_filter=found)


def _refuses(reply: Reply, defaults: SafeCodeDefaults) -> bool:
    return opens_with(reply.text, defaults.refusal_phrases) or is_refusal(reply.text)
