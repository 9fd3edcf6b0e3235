"""Messages to token ids, with the checkpoint's own chat template and tokenizer.

A user's text never becomes a control token: where it spells one, it is cut inside that spelling before it is
tokenised. All other text is tokenised exactly as transformers does it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import jinja2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from safecode_trt.errors import BundleError, PromptError
from safecode_trt.models import Layout, ModelSpec
from safecode_trt.runtime.continuation import ContinuationTokenizer
from safecode_trt.runtime.template import read_settings, read_template

__all__ = ["Message", "PromptBuilder"]

MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `images` pictures stand before its text."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: int = 0


class PromptBuilder:
    """The chat template and tokenizer of one bundle or checkpoint folder."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._spec = spec
        self.tokenizer = _read_tokenizer(folder / "tokenizer.json")
        words = spec.words_tokenizer
        self._words = _read_tokenizer(folder / words) if words else None
        self.continuation = ContinuationTokenizer(self.tokenizer)
        settings = read_settings(folder / "tokenizer_config.json")
        self._template = read_template(folder, settings, spec.chat_template)
        self._variables = {
            name: _spelling(settings[name]) for name in ("bos_token", "eos_token") if settings.get(name)
        }
        readers = [self.tokenizer, *([self._words] if self._words else [])]
        added = [token for reader in readers for token in reader.get_added_tokens_decoder().values()]
        self._controls = tuple(sorted({token.content for token in added if token.content}))

    @cached_property
    def system_role(self) -> bool:
        """Whether the chat template writes what a system turn says, and nothing else of it."""
        said = "\ue000said\ue000"
        turns = [Message(role="system", text=said), Message(role="user", text="?")]
        try:
            text = self._render(turns, _new_cut())
        except PromptError:
            return False
        return said in text and "'type'" not in text

    def encode(self, messages: Sequence[Message], layouts: Sequence[Layout]) -> NDArray[np.int64]:
        """Token ids (n,) of the conversation with the opening of the assistant's turn.

        `layouts` are those of the pictures in order; each makes as many image tokens as it has features.

        Raises:
            PromptError: the template refuses the messages, or the pictures do not match them.
        """
        for message in messages:
            if len(message.text) > MAX_CHARACTERS:
                raise PromptError(
                    f"the text has {len(message.text)} characters; at most {MAX_CHARACTERS} are accepted"
                )
        cut = _new_cut()
        text = self._render(messages, cut)
        pieces = self._pieces(text)
        if len(pieces) - 1 != len(layouts):
            raise PromptError(
                f"the prompt has places for {len(pieces) - 1} pictures, but {len(layouts)} were given"
            )
        shown: list[int] = []
        if self._spec.pictures_first:
            shown = [self._spec.image_token_id] * sum(layout.tokens for layout in layouts)
            text = "".join(pieces)
        else:
            text = pieces[0] + "".join(
                self._spec.image_text(layout) + piece
                for layout, piece in zip(layouts, pieces[1:], strict=True)
            )
            text = self._spec.prompt_text(text)
        # A template that writes the first token itself must not get it twice; one for text writes all of them.
        bare = self._spec.text_only or text.startswith(self._variables.get("bos_token") or cut)
        first, *rest = text.split(cut)
        parts = [shown, self.tokenizer.encode(first, add_special_tokens=not bare).ids]
        parts += [self.continuation.encode(part) for part in rest]
        return np.array([token for part in parts for token in part], dtype=np.int64)

    def words(self, messages: Sequence[Message]) -> NDArray[np.int64]:
        """The conversation (n,) in the words that the vision encoder reads, without pictures.

        Raises:
            PromptError: the template refuses the messages, or they are more than the vision encoder can read.
        """
        if self._words is None:
            raise PromptError("the vision encoder of this family reads no words")
        cut = _new_cut()
        text = "".join(self._pieces(self._render(messages, cut)))
        # The parts are tokenised one by one, and the first and last tokens of the whole put around them.
        found = self._words.encode(text.split(cut), is_pretokenized=True).ids
        if (most := self._spec.max_words) is not None and len(found) > most:
            raise PromptError(
                f"the request has {len(found)} tokens, but the vision encoder reads at most {most}; shorten it"
            )
        return np.array(found, dtype=np.int64)

    def _pieces(self, text: str) -> list[str]:
        """A rendered conversation, cut where its pictures go."""
        placeholder = self._spec.image_placeholder
        return [text] if placeholder is None else text.split(placeholder)

    def _render(self, messages: Sequence[Message], cut: str) -> str:
        turns = [{"role": message.role, "content": self._content(message, cut)} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._variables)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise PromptError(f"the chat template does not take these messages: {error}") from error

    def _content(self, message: Message, cut: str) -> str | list[dict[str, str]]:
        """A turn as the chat template takes it: a text, or a list of pictures and texts."""
        text = self._defuse(message.text, cut)
        if self._spec.image_placeholder is None:
            self._spec.require_pictures(message.images)
            return text
        return [{"type": "image"}] * message.images + [{"type": "text", "text": text}]

    def _defuse(self, text: str, cut: str) -> str:
        """Marks a cut after the first character of everything that spells a control token."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason} at {error.start}") from error
        starts: set[int] = set()
        for control in self._controls:
            at = text.find(control)
            while at >= 0:
                starts.add(at)
                at = text.find(control, at + 1)
        for start in sorted(starts, reverse=True):
            text = text[: start + 1] + cut + text[start + 1 :]
        return text


def _new_cut() -> str:
    """A mark that no text holds."""
    return f"\ue000{secrets.token_hex(8)}\ue000"


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{path} cannot be read: {error}") from error
    # The file may keep a length to cut or pad to, which transformers does not obey either.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _spelling(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
