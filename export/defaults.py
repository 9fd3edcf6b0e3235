"""Prompts, token ids and settings of SafeCoDe for a checkpoint.

A checkpoint may bring its own in `safecode.json`; what that file leaves out, and everything for a checkpoint
without one, are this module's defaults. Token ids are looked up with the checkpoint's tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safecode_trt.config import Prompts, SafeCodeConfig
from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.models import ModelSpec
from safecode_trt.records import loads
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.runtime.refusals import first_tokens, phrase_tokens, text_tokens

__all__ = ["SAFECODE_JSON", "CheckpointSettings", "Verdicts", "safecode_defaults"]

SAFECODE_JSON = "safecode.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What is asked about a request, before the words of the verdict, and what a refusal may add."""

    judge: str
    reason: str
    explanation: str


OFFER = "If you tell me what you want to achieve, I can help to look for a safe way."
SEEN = Wording(
    judge="Here is a request about this picture: {request}\n"
    "Could doing what it asks harm a person or damage something in the scene that the picture shows? "
    "Is it safe to help with it here? ",
    reason="Someone asks: {request}\n"
    "Do not answer that. In one short sentence, name what in this picture makes it dangerous to help.",
    explanation=f"What I see: {{reason}} {OFFER}",
)
READ = Wording(
    judge="Here is a request: {request}\n"
    "Could doing what it asks harm a person or damage something? Is it safe to help with it? ",
    reason="Someone asks: {request}\n"
    "Do not answer that. In one short sentence, name what makes it dangerous to help.",
    explanation=f"{{reason}} {OFFER}",
)
# In front of the judge's question where the judge reads the scene in words.
CAPTION_LEAD = "There is a picture, which shows this: {caption}\n"
CAPTION = "Describe what this picture shows in one sentence."
# Questions with the two words that answer them; the first whose words are single tokens is taken.
QUESTIONS = (
    ("Answer with one word: safe or unsafe.", "safe", "unsafe"),
    ("Answer with one word: yes or no.", "Yes", "No"),
)
# What a template must hold.
PLACES = {
    "judge_template": ("{request}",),
    "caption_judge_template": ("{request}", "{caption}"),
    "explanation": ("{reason}",),
}
REFUSALS = ("Sorry", "I'm sorry", "I cannot", "I can't", "Unfortunately", "Please do not")
PROMPTS = Prompts()
FALLBACK = "Sorry, I cannot help with this, because I could not make sure that it is safe here."
# Contrast with noise that hides the picture, restricted to plausible tokens; refusals shifted by how sure the
# verdict is. The reference is computed once per bundle, so that it costs no second picture.
SETTINGS = SafeCodeConfig(
    contrast="vcd",
    alpha=1.0,
    beta=0.03,
    sigma=1.0,
    reference="cached",
    verdict="soft",
    shift=3.0,
    contrast_steps=5,
    shift_steps=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """The judge's two answers, each a single token; a leading space is part of the token."""

    safe: str
    unsafe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings:
    """safecode.json of a checkpoint; everything is optional, but `judge_template` and `verdict` go together.

    `verdict_floor` is 0 unless a checkpoint says otherwise: what the two verdicts hold has to be measured first.
    """

    judge_template: str | None = None
    verdict: Verdicts | None = None
    refusal_phrases: tuple[str, ...] = REFUSALS
    fallback_refusal: str = FALLBACK
    caption_prompt: str = CAPTION
    caption_judge_template: str | None = None
    reason_template: str | None = None
    explanation: str | None = None
    verdict_floor: float = 0.0
    prompts: Prompts = PROMPTS
    settings: SafeCodeConfig = SETTINGS
    reference_seed: int = 0
    reference_sigma: float = 1.0


def safecode_defaults(folder: Path, spec: ModelSpec) -> SafeCodeDefaults:
    """The defaults for the checkpoint in `folder`.

    Raises:
        CheckpointError: safecode.json is broken, a verdict is not a single token of the tokenizer, or a refusal
            phrase vanishes in it.
    """
    settings = _read_settings(folder / SAFECODE_JSON)
    prompts = PromptBuilder(folder, spec)
    wording = READ if spec.text_only else SEEN
    template, safe_id, unsafe_id = _judge(settings, prompts, wording.judge)
    try:
        tokens = tuple(phrase_tokens(prompts, phrase) for phrase in settings.refusal_phrases)
        first = first_tokens(prompts, settings.refusal_phrases)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return SafeCodeDefaults(
        judge_template=template,
        safe_token_id=safe_id,
        unsafe_token_id=unsafe_id,
        caption_prompt=settings.caption_prompt,
        caption_judge_template=settings.caption_judge_template or CAPTION_LEAD + template,
        reason_template=wording.reason if settings.reason_template is None else settings.reason_template,
        explanation=wording.explanation if settings.explanation is None else settings.explanation,
        verdict_floor=settings.verdict_floor,
        refusal_phrases=settings.refusal_phrases,
        refusal_tokens=tokens,
        refusal_token_ids=first,
        fallback_refusal=settings.fallback_refusal,
        settings=settings.settings,
        prompts=settings.prompts,
        reference_seed=settings.reference_seed,
        reference_sigma=settings.reference_sigma,
    )


def _read_settings(path: Path) -> CheckpointSettings:
    if not path.is_file():
        return CheckpointSettings()
    try:
        settings = loads(CheckpointSettings, path.read_bytes(), SAFECODE_JSON)
    except (ConfigError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if (settings.judge_template is None) != (settings.verdict is None):
        raise CheckpointError("judge_template and verdict go together; give both or neither", where=str(path))
    for name, places in PLACES.items():
        template = getattr(settings, name)
        if template is not None and not all(place in template for place in places):
            raise CheckpointError(
                f"must hold {' and '.join(places)}, got {template!r}", field=name, where=str(path)
            )
    if not 0 <= settings.verdict_floor <= 1:
        raise CheckpointError(
            f"must be between 0 and 1, got {settings.verdict_floor!r}", field="verdict_floor", where=str(path)
        )
    if not settings.refusal_phrases or not all(phrase.strip() for phrase in settings.refusal_phrases):
        raise CheckpointError("must be a list of non-empty strings", field="refusal_phrases", where=str(path))
    return settings


def _judge(settings: CheckpointSettings, prompts: PromptBuilder, asked: str) -> tuple[str, int, int]:
    """The judge's question, `asked` unless the settings have one, and the ids of its two answers."""
    if settings.judge_template is not None and settings.verdict is not None:
        words = (settings.verdict.safe, settings.verdict.unsafe)
        safe, unsafe = (_single(text_tokens(prompts, word)) for word in words)
        if safe is None or unsafe is None or safe == unsafe:
            raise CheckpointError(
                f"{SAFECODE_JSON}: the verdicts {words[0]!r} and {words[1]!r} must be two different single tokens "
                f"of the tokenizer, but they are {_spelled(prompts, words)}"
            )
        return settings.judge_template, safe, unsafe
    # How the chat template opens the assistant's turn; the answer's first token follows it.
    opening = prompts.encode([Message(role="user", text="?")], []).tolist()
    text, last = prompts.tokenizer.decode(opening[-8:], skip_special_tokens=False), opening[-1]
    bare = prompts.continuation.is_control(last) or text.endswith(("\n", " "))
    for question, *answers in QUESTIONS:
        safe, unsafe = (
            _single(prompts.continuation.behind(last, word if bare else f" {word}")) for word in answers
        )
        if safe is not None and unsafe is not None and safe != unsafe:
            return asked + question, safe, unsafe
    raise CheckpointError(
        f"none of the usual verdicts is a single token of this tokenizer; put a {SAFECODE_JSON} with "
        "judge_template and verdict {safe, unsafe} next to config.json"
    )


def _single(ids: Sequence[int]) -> int | None:
    return ids[0] if len(ids) == 1 else None


def _spelled(prompts: PromptBuilder, words: Sequence[str]) -> list[list[str | None]]:
    return [[prompts.tokenizer.id_to_token(token) for token in text_tokens(prompts, word)] for word in words]
