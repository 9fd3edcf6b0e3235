"""What a text says of safe and unsafe, sentence by sentence. Reads English words and knows no judge."""

from __future__ import annotations

import re
from typing import Literal

from safecode_trt.runtime.refusals import straightened

__all__ = ["Said", "is_negated", "said_of_safety", "statements"]

Said = Literal["safe", "not safe", "unsafe", "unclear", "nothing"]

_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\b(?:(?:un|non)[- ]?)?safe\b")
_NEGATION = re.compile(
    r"n't\b|\b(?:is|are|was|were|do|does|did|would|should|could|has|have|ca|wo)nt\b|"
    r"\b(?:no|not|nothing|nobody|none|never|neither|nor|cannot|without|hardly|barely|scarcely|rarely|seldom|unlikely|"
    r"doubt|doubtful|fail|fails|far from|anything but|less|lacks?)\b"
)


def statements(text: str) -> list[str]:
    """The sentences of a text in lower case with straight apostrophes; questions state nothing and are left out."""
    sentences = (sentence.strip() for sentence in _SENTENCES.split(straightened(text).lower()))
    return [sentence for sentence in sentences if sentence and not sentence.endswith("?")]


def is_negated(sentence: str) -> bool:
    """Whether a negation is anywhere in one of the `statements`."""
    return _NEGATION.search(sentence) is not None


def said_of_safety(sentence: str) -> Said:
    """What one of the `statements` says; with a negation next to it, no "safe" counts as one."""
    words = {"safe" if word == "safe" else "unsafe" for word in _WORD.findall(sentence)}
    if not words:
        return "nothing"
    negated = is_negated(sentence)
    if words == {"safe"}:
        return "not safe" if negated else "safe"
    return "unclear" if negated or len(words) > 1 else "unsafe"
