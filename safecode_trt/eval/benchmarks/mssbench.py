"""MSSBench (arXiv 2410.06172): the same words in a scene where helping is safe and in one where it is not.

A folder with combined.json (the authors' own program opens combine.json), chat/ and embodied/. A split is a task and
a setting: `if` follows instructions, `qc` asks to consider the query, `ic` states the intent, `ic_cap` adds a caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safecode_trt.eval.benchmarks.files import Record, first_file, picture_path, read_json
from safecode_trt.eval.benchmarks.item import Benchmark, Draft, EvalItem, Side, Templates
from safecode_trt.eval.benchmarks.templates import fill

__all__ = ["BENCHMARK", "answer_part"]

SETTINGS = ("if", "qc", "ic", "ic_cap")
CAPTION = "\nThe caption is: "
SIDES: tuple[Side, ...] = ("safe", "unsafe")


def _read(folder: Path, split: str, templates: Templates) -> Draft:
    path = first_file(folder, ("combined.json", "combine.json"), "the folder of MSSBench")
    task, setting = split.split("-")
    template = templates[f"mssbench.{task}.{setting}"]
    draft = Draft()
    for number, pair in enumerate(Record(read_json(path), str(path)).records(task)):
        questions = _chat(pair, setting) if task == "chat" else _embodied(pair, setting, draft)
        for query, side, request, caption in questions:
            name = pair.text(f"{side}_image_path" if task == "chat" else side)
            draft.items.append(
                EvalItem(
                    benchmark="mssbench",
                    split=split,
                    item=str(number),
                    query=query,
                    side=side,
                    prompt=fill(template, request=request) + (CAPTION + caption if caption else ""),
                    picture=picture_path(folder / task, name, pair.where),
                    category=pair.text("Type" if task == "chat" else "category"),
                )
            )
    return draft


Question = tuple[str, Side, str, str]  # query, side, request, caption


def _chat(pair: Record, setting: str) -> Iterator[Question]:
    """Every query on both pictures; of the captions, only the unsafe picture's exists and is given."""
    intent = setting in ("ic", "ic_cap")
    for query, request in enumerate([pair.text("intent")] if intent else pair.texts("queries")):
        for side in SIDES:
            captioned = setting == "ic_cap" and side == "unsafe"
            name = "intent" if intent else str(query)
            yield name, side, request, pair.text("unsafe_image") if captioned else ""


def _embodied(pair: Record, setting: str, draft: Draft) -> Iterator[Question]:
    """Instructions go in pairs, each on its own picture."""
    if setting in ("ic", "ic_cap"):
        for side in SIDES:
            caption = pair.text(f"observation_{side}") if setting == "ic_cap" else ""
            yield "intent", side, pair.text(f"{side}_instruction"), caption
        return
    columns = [pair.texts(f"{side}_instructions") for side in SIDES]
    paired = min(map(len, columns))
    # The authors' loop ends with the shorter list too.
    draft.notes += ["an instruction without a partner is not asked"] * (max(map(len, columns)) - paired)
    for query in range(paired):
        for side, column in zip(SIDES, columns, strict=True):
            yield str(query), side, column[query], ""


def answer_part(answer: str) -> str:
    """What the authors judge of an answer: the text after the last "Response to instruction:"."""
    return answer.rpartition("Response to instruction:")[2].strip()


BENCHMARK = Benchmark(
    name="mssbench",
    source="https://huggingface.co/datasets/kzhou35/mssbench",
    licence="MIT",
    splits=tuple(f"{task}-{setting}" for task in ("chat", "embodied") for setting in SETTINGS),
    default=("chat-if", "embodied-if"),
    published={
        "chat-if": 1200,
        "chat-qc": 1200,
        "chat-ic": 600,
        "chat-ic_cap": 600,
        "embodied-if": 760,
        "embodied-qc": 760,
        "embodied-ic": 152,
        "embodied-ic_cap": 152,
    },
    read=_read,
    answer_part=answer_part,
)
