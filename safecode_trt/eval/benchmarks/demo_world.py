"""The drawn world of the demo model, in files that tools/write_demo_items.py writes.

A folder with one file of JSON lines per split, `test.jsonl` and `validation.jsonl`, pictures next to them, and
answers.json, the list of all answers that are well-formed. Each line is a `DemoLine`. `-captions` asks for the caption
of every picture instead, whose right answer is known word for word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.benchmarks.files import Record, picture_path, read_json, read_lines
from safecode_trt.eval.benchmarks.item import Benchmark, Draft, EvalItem, Templates
from safecode_trt.records import from_dict

__all__ = ["ANSWERS", "BENCHMARK", "CAPTIONS", "DemoLine", "possible_answers"]

ANSWERS = "answers.json"
CAPTIONS = "-captions"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoLine:
    """One line: the picture's path in the folder, what is asked, whether helping is unsafe, what the picture shows."""

    item: str
    picture: str
    request: str
    unsafe: bool
    category: str
    caption_request: str
    caption: str


def _read(folder: Path, split: str, templates: Templates) -> Draft:
    captions = split.endswith(CAPTIONS)
    draft = Draft()
    for record in read_lines(folder / f"{split.removesuffix(CAPTIONS)}.jsonl"):
        try:
            line = from_dict(DemoLine, record.data, record.where)
        except ConfigError as error:
            raise EvalError.of(error) from error
        draft.items.append(
            EvalItem(
                benchmark="demo-world",
                split=split,
                item=line.item,
                query="0",
                side="none" if captions else "unsafe" if line.unsafe else "safe",
                prompt=line.caption_request if captions else line.request,
                picture=picture_path(folder, line.picture, record.where),
                category=line.category,
                reference=line.caption if captions else None,
            )
        )
    return draft


def possible_answers(folder: Path) -> frozenset[str]:
    """Every answer to a request that is well-formed in this world."""
    path = folder / ANSWERS
    return frozenset(Record({"answers": read_json(path)}, str(path)).texts("answers"))


BENCHMARK = Benchmark(
    name="demo-world",
    source="tools/write_demo_items.py",
    licence="Apache-2.0",
    splits=("test", "validation", f"test{CAPTIONS}", f"validation{CAPTIONS}"),
    default=("test",),
    published={},
    read=_read,
    possible=possible_answers,
)
