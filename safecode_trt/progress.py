"""How long work tells of itself: its steps, and remarks."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Note", "Progress", "no_note", "no_progress"]

Progress = Callable[[str, int, int], None]
"""Is told the name of a step, how much of it is done, and how much there is."""
Note = Callable[[str], None]
"""Is told a remark of one line, or of several indented ones."""


def no_progress(step: str, done: int, total: int) -> None:
    """Tells nobody."""


def no_note(text: str) -> None:
    """Tells nobody."""
