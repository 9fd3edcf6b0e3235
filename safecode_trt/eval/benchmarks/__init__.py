"""Benchmarks of safety, read from the user's disk in the layouts of their authors; one file each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.benchmarks import (
    case_bench,
    demo_world,
    figstep,
    hades,
    mm_safetybench,
    mossbench,
    mssbench,
)
from safecode_trt.eval.benchmarks.item import Benchmark, EvalItem, ItemSet, Side, Templates
from safecode_trt.eval.benchmarks.rubric_words import RUBRICS
from safecode_trt.eval.benchmarks.templates import TEMPLATES, load_templates

__all__ = [
    "BENCHMARKS",
    "RUBRICS",
    "TEMPLATES",
    "Benchmark",
    "EvalItem",
    "ItemSet",
    "Side",
    "Templates",
    "load_templates",
    "read_benchmark",
]

_ALL = (mssbench, mossbench, mm_safetybench, hades, figstep, case_bench, demo_world)
BENCHMARKS: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in _ALL}


def read_benchmark(
    name: str,
    folder: Path,
    *,
    splits: Sequence[str] = (),
    templates: Templates = TEMPLATES,
    allow_missing: bool = False,
) -> ItemSet:
    """The items of some splits of a benchmark, or of those that are meant when none is named.

    With `allow_missing`, items whose picture is not there are kept apart and counted in a note.

    Raises:
        ConfigError: there is no such benchmark or split.
        EvalError: a file is missing or malformed, a key is there twice, or pictures are missing.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"must be one of {', '.join(BENCHMARKS)}, got {name!r}", field="benchmark")
    benchmark = BENCHMARKS[name]
    if not folder.is_dir():
        raise EvalError(f"{folder} is not a folder; expected {name} from {benchmark.source}")
    found: list[EvalItem] = []
    notes: list[str] = []
    for split in splits or benchmark.default:
        if split not in benchmark.splits:
            raise ConfigError(
                f"must be out of {', '.join(benchmark.splits)} for {name}, got {split!r}", field="split"
            )
        draft = benchmark.read(folder, split, templates)
        found += draft.items
        notes += [f"{name} {split}: {note} ({times} times)" for note, times in Counter(draft.notes).items()]
        notes += _count(benchmark, split, len(draft.items))
    _refuse_twins(found)
    missing = tuple(item for item in found if item.picture is not None and not item.picture.is_file())
    if missing:
        text = (
            f"{name}: {len(missing)} of {len(found)} items lack their picture, the first {missing[0].picture}"
        )
        if not allow_missing:
            raise EvalError(text, fix="complete the folder, or pass --allow-missing")
        notes.append(text)
    absent = {item.key for item in missing}
    items = tuple(item for item in found if item.key not in absent)
    if not items:
        raise EvalError(f"{folder}: there is nothing to ask in {name}")
    possible = benchmark.possible(folder) if benchmark.possible else None
    return ItemSet(items=items, missing=missing, notes=tuple(notes), possible=possible)


def _count(benchmark: Benchmark, split: str, found: int) -> list[str]:
    """A note where the number of items is not the published one."""
    expected = benchmark.published.get(split, found)
    return [] if found == expected else [f"{benchmark.name} {split}: {found} items, {expected} are published"]


def _refuse_twins(items: Sequence[EvalItem]) -> None:
    seen: dict[str, EvalItem] = {}
    for item in items:
        if item.key in seen:
            raise EvalError(f"two items have the key {item.key}; each may be there once")
        seen[item.key] = item
