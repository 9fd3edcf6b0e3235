"""Refusal phrases as tokens: how a refusal begins, in the spellings that a tokenizer has for it."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from safecode_trt.errors import ConfigError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.runtime.prompt import PromptBuilder

__all__ = [
    "first_tokens",
    "opens_with",
    "phrase_tokens",
    "read_phrases",
    "straightened",
    "text_tokens",
    "with_refusals",
    "words_of",
]

_APOSTROPHES = dict.fromkeys(map(ord, "‘’ʼ´`′"), "'")


def read_phrases(path: Path) -> tuple[str, ...]:
    """Refusal phrases from a text file, one a line; empty lines are passed over, a space in front is kept.

    Raises:
        ConfigError: the file cannot be read, or holds no phrase.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; expected a phrase a line") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); expected a phrase a line") from error
    phrases = tuple(dict.fromkeys(line.rstrip() for line in lines if line.strip()))
    if not phrases:
        raise ConfigError(f"{path} holds no refusal phrase; expected one a line")
    return phrases


def with_refusals(
    defaults: SafeCodeDefaults, phrases: Sequence[str], prompts: PromptBuilder, vocab_size: int
) -> SafeCodeDefaults:
    """The defaults with other refusal phrases; what was found about the earlier ones is dropped.

    Raises:
        ConfigError: a phrase vanishes in the tokenizer, or the model has no such token.
    """
    tokens = tuple(phrase_tokens(prompts, phrase) for phrase in phrases)
    for phrase, ids in zip(phrases, tokens, strict=True):
        if max(ids) >= vocab_size:
            raise ConfigError(
                f"refusal phrase {phrase!r} becomes token {max(ids)}, but the model has {vocab_size} tokens"
            )
    return replace(
        defaults,
        refusal_phrases=tuple(phrases),
        refusal_tokens=tokens,
        refusal_token_ids=first_tokens(prompts, phrases),
        refusal_filter=None,
    )


def text_tokens(prompts: PromptBuilder, text: str) -> list[int]:
    """The ids of text on its own; where it begins with a space, of text that follows other text."""
    if text.startswith(" "):
        return prompts.continuation.encode(text)
    return list(prompts.tokenizer.encode(text, add_special_tokens=False).ids)


def phrase_tokens(prompts: PromptBuilder, phrase: str) -> tuple[int, ...]:
    """The ids of a refusal phrase.

    Raises:
        ConfigError: the tokenizer makes nothing of it, or has no token for a part of it.
    """
    ids = tuple(text_tokens(prompts, _normal(phrase)))
    unknown = _unknown_id(prompts.tokenizer)
    if not ids or unknown in ids:
        found = "no token" if not ids else "the unknown token"
        raise ConfigError(
            f"refusal phrase {phrase!r} becomes {found} in this tokenizer; give it in other words"
        )
    return ids


def first_tokens(prompts: PromptBuilder, phrases: Sequence[str]) -> tuple[int, ...]:
    """The first token of every phrase, and of its twin with or without a leading space.

    Either counts only where it ends with a word of the phrase: half a word begins other words too.

    Raises:
        ConfigError: a phrase vanishes in the tokenizer, or none begins with a whole word.
    """
    found = set()
    for phrase in map(_normal, phrases):
        bare = phrase.strip()
        phrase_tokens(prompts, phrase)
        for spelling in (bare, f" {bare}"):
            ids = text_tokens(prompts, spelling)
            if ids and _ends_a_word(prompts.tokenizer.decode(ids[:1]).strip(), bare):
                found.add(ids[0])
    if not found:
        raise ConfigError(
            f"none of {len(phrases)} refusal phrases begins with a whole word in this tokenizer, "
            f"such as {phrases[0]!r}; give others"
        )
    return tuple(sorted(found))


def _ends_a_word(start: str, phrase: str) -> bool:
    """Whether a phrase begins with this text, and the text does not stop between two letters of a word.

    Letters without case are those of scripts that do not split words at spaces alone, or cannot be told from them.
    """
    if not start or not phrase.startswith(start):
        return False
    return not (_cased(start[-1]) and _cased(phrase[len(start) :][:1]))


def _cased(sign: str) -> bool:
    return sign.lower() != sign.upper()


def opens_with(text: str, phrases: Iterable[str]) -> bool:
    """Whether a text begins with one of the phrases, word by word, whatever their case and signs."""
    words = words_of(text)
    return any(known and words[: len(known)] == known for known in map(_words_of_phrase, phrases))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, case folded and without signs."""
    return tuple(re.findall(r"\w+", text.translate(_APOSTROPHES).casefold()))


_words_of_phrase = functools.lru_cache(maxsize=4096)(words_of)


def straightened(text: str) -> str:
    """The text in NFKC and with straight apostrophes for all that are typed in their place."""
    # Before NFKC, which takes an acute accent apart.
    return unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))


def _normal(phrase: str) -> str:
    """The phrase with straight apostrophes, in NFKC, and with one space for many."""
    return re.sub(r"\s+", " ", straightened(phrase)).rstrip()


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what stands for text that the tokenizer cannot write."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        found = tokenizer.token_to_id(model["unk_token"])
        return None if found is None else int(found)
    return model.get("unk_id")
