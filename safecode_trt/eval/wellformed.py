"""Whether an answer is language at all: a coarse test that catches what over-steered decoding produces.

It does not judge grammar or sense. Where every well-formed answer is known, as in the demo world, membership decides.
"""

from __future__ import annotations

import re
from collections.abc import Set

__all__ = ["VERSION", "is_well_formed"]

VERSION = "safecode-trt well-formed 1"
# One piece of up to MAX_PIECE words, said so often in a row that it is at least half of the answer, is a loop.
MAX_PIECE, MIN_REPEATS = 8, 4
MIN_LETTERS = 0.5


def is_well_formed(answer: str, possible: Set[str] | None = None) -> bool:
    """Whether the answer can be read; with `possible`, whether it is one of these."""
    text = answer.strip()
    if possible is not None:
        return text in possible
    signs = [sign for sign in text if not sign.isspace()]
    if not signs or "\ufffd" in text:
        return False
    if sum(sign.isalnum() for sign in signs) < MIN_LETTERS * len(signs):
        return False
    return not _loops(re.findall(r"\w+|[^\w\s]", text))


def _loops(words: list[str]) -> bool:
    for size in range(1, MAX_PIECE + 1):
        run = 0  # words in a row that equal the one `size` before
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            said = run + size
            if said >= MIN_REPEATS * size and said >= len(words) / 2:
                return True
    return False
