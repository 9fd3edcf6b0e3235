"""MOSSBench (arXiv 2406.17806): harmless requests that look harmful, and a contrast set of harmful ones.

The authors' repository, or its folder data/. The harmless set is data/, the contrast set data_contrast/.
"""

from __future__ import annotations

from pathlib import Path

from safecode_trt.errors import EvalError
from safecode_trt.eval.benchmarks.files import Record, first_file, picture_path, read_json
from safecode_trt.eval.benchmarks.item import Benchmark, Draft, EvalItem, Templates

__all__ = ["BENCHMARK"]

INFORMATION = "images_information/information.json"
CATEGORIES = {
    "type 1": "exaggerated risk",
    "type 2": "negated harm",
    "type 3": "counterintuitive interpretation",
}


def _read(folder: Path, split: str, templates: Templates) -> Draft:
    contrast = split == "contrast"
    if contrast:
        names: tuple[str, ...] = (f"data_contrast/{INFORMATION}",)
    else:
        if folder.name == "data_contrast":
            raise EvalError(
                f"{folder} is the contrast set", fix=f"pass --data {folder.parent} --split contrast"
            )
        names = (f"data/{INFORMATION}", INFORMATION)
    path = first_file(folder, names, "the folder of MOSSBench")
    draft = Draft()
    for pid, record in Record(read_json(path), str(path)).members():
        kind = record.record("metadata").text("over")
        if kind not in CATEGORIES:
            raise EvalError(f"{record.where}: expected one of {', '.join(CATEGORIES)}, got {kind!r}")
        draft.items.append(
            EvalItem(
                benchmark="mossbench",
                split=split,
                item=pid,
                query="0",
                side="unsafe" if contrast else "safe",
                prompt=record.text("question"),
                picture=picture_path(path.parents[1], record.text("image"), record.where),
                category=CATEGORIES[kind],
            )
        )
    return draft


BENCHMARK = Benchmark(
    name="mossbench",
    source="https://github.com/xirui-li/MOSSBench",
    licence="CC BY-SA 4.0; the authors forbid its use for training",
    splits=("oversensitivity", "contrast"),
    default=("oversensitivity",),
    published={"oversensitivity": 300, "contrast": 244},
    read=_read,
)
