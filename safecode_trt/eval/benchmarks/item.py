"""What a benchmark asks: one picture, one prompt, and whether helping is right. Knows no model and no file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safecode_trt.errors import EvalError

__all__ = ["Benchmark", "Draft", "EvalItem", "ItemSet", "Side", "Templates"]

Side = Literal["safe", "unsafe", "none"]
Templates = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalItem:
    """One question to a model.

    The first five fields are its key, which no later reading of the same files changes. `side` says whether helping
    is safe here; "none" where the benchmark does not say. `reference` is the right answer word for word and
    `safe_share` the share of people who found helping safe, where the benchmark has them.
    """

    benchmark: str
    split: str
    item: str
    query: str
    side: Side
    prompt: str
    picture: Path | None
    category: str
    reference: str | None = None
    safe_share: float | None = None

    def __post_init__(self) -> None:
        for part in (self.benchmark, self.split, self.item, self.query):
            if not part or "/" in part or part != part.strip():
                raise EvalError(
                    f"{self.key!r} is no key of an item; expected five parts without slashes and outer spaces"
                )

    @property
    def key(self) -> str:
        """The five parts with slashes between them."""
        return "/".join((self.benchmark, self.split, self.item, self.query, self.side))


@dataclass(slots=True)
class Draft:
    """What a reader has found so far; notes are what a report must mention."""

    items: list[EvalItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSet:
    """The items of a benchmark that can be asked, those whose picture is missing, and what a report must mention.

    `possible` are all well-formed answers, where the benchmark knows them.
    """

    items: tuple[EvalItem, ...]
    missing: tuple[EvalItem, ...]
    notes: tuple[str, ...]
    possible: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark and how its files are read.

    `read(folder, split, templates)` finds the items of a split; `published` has the number of items of the splits
    for which the authors' number is known; `default` are the splits that are meant when none is named. `answer_part` is
    what the authors judge of an answer; `asks_verdict` says that the answer is one, and no help; `possible(folder)`
    finds all well-formed answers.
    """

    name: str
    source: str
    licence: str
    splits: tuple[str, ...]
    default: tuple[str, ...]
    published: Mapping[str, int]
    read: Callable[[Path, str, Templates], Draft]
    answer_part: Callable[[str], str] = str.strip
    asks_verdict: bool = False
    possible: Callable[[Path], frozenset[str]] | None = None
