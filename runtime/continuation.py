"""Text that goes on inside a word to token ids.

A tokenizer of SentencePiece's kind puts a space in front of every text, and one that goes on must not get it.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

__all__ = ["ContinuationTokenizer"]

LISTS = ("normalizers", "pretokenizers")


class ContinuationTokenizer:
    """Reads the pieces of a cut text, all but the first."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._controls = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}

    def is_control(self, token_id: int) -> bool:
        """Whether it is none of the tokens that text is made of."""
        return token_id in self._controls

    def encode(self, piece: str) -> list[int]:
        """The token ids of text in front of which there is other text."""
        whole = self._tokenizer.encode(piece, add_special_tokens=False)
        if self._inner is None:
            return list(whole.ids)
        # From the first control token on, there is something in front of everything.
        starts = (
            start
            for token, (start, _) in zip(whole.ids, whole.offsets, strict=True)
            if self.is_control(token)
        )
        end = next(starts, len(piece))
        parts = (self._inner, piece[:end]), (self._tokenizer, piece[end:])
        return [
            token for reader, text in parts for token in reader.encode(text, add_special_tokens=False).ids
        ]

    def behind(self, token_id: int, text: str) -> list[int]:
        """The token ids of text that follows this token."""
        if not self.is_control(token_id):
            return self.encode(text)
        text = self._controls[token_id] + text
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids[1:])

    @cached_property
    def _inner(self) -> Tokenizer | None:
        """The same tokenizer without a space in front; None if it puts none there. Made when it is needed."""
        described = json.loads(self._tokenizer.to_str())
        steps = {name: described[name] for name in ("normalizer", "pre_tokenizer")}
        bare = {name: _bare(step) for name, step in steps.items()}
        return None if bare == steps else Tokenizer.from_str(json.dumps(described | bare))


def _bare(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of tokenizer.json without the space that it puts in front of a text."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return step | {"add_prefix_space": False}
    lists = {name: [b for inner in step[name] if (b := _bare(inner))] for name in LISTS if name in step}
    return step | lists
