"""Files of benchmarks that are not as they should be: one line that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.errors import EvalError
from safecode_trt.eval.benchmarks import read_benchmark
from safecode_trt.eval.benchmarks.files import Record, picture_path, read_json, read_lines, read_rows
from tests import benchmark_folders as folders

INFORMATION = "data/images_information/information.json"
COMBINED = "combined.json"
QUESTIONS = "data/processed_questions/06-Fraud.json"
INSTRUCTIONS = "dataset/instructions/Privacy.json"
TABLE = "data/question/safebench.csv"
CASES = "data/CASEBench_data.json"


def change(place: str, value: object) -> Callable[[str], str]:
    """Sets what a path of keys and indices leads to; `...` as value removes it."""

    def apply(text: str) -> str:
        data: Any = json.loads(text)
        *path, last = place.split(".")
        inner = data
        for part in path:
            inner = inner[int(part) if isinstance(inner, list) else part]
        key: Any = int(last) if isinstance(inner, list) else last
        if value is ...:
            del inner[key]
        else:
            inner[key] = value
        return json.dumps(data)

    return apply


@pytest.mark.parametrize(
    ("name", "file", "spoil", "message"),
    [
        ("mssbench", COMBINED, change("chat", ...), r"combined.json: 'chat' is missing; has 'embodied'"),
        ("mssbench", COMBINED, change("chat", {}), r"combined.json.chat: expected a list, got dict"),
        ("mssbench", COMBINED, change("chat.1", 3), r"chat\[1\]: expected an object, got 3"),
        (
            "mssbench",
            COMBINED,
            change("chat.1.queries", []),
            r"chat\[1\]: expected a list of texts as 'queries'",
        ),
        (
            "mssbench",
            COMBINED,
            change("chat.0.queries.1", " "),
            r"chat\[0\]\[1\]: expected text as 'queries'",
        ),
        ("mssbench", COMBINED, change("chat.0.Type", ...), r"chat\[0\]: 'Type' is missing"),
        ("mssbench", COMBINED, change("chat.0.safe_image_path", "../x.jpg"), "leads out of"),
        ("mssbench", COMBINED, lambda text: text[:-9], r"combined.json is not valid JSON"),
        ("mssbench", COMBINED, lambda text: text.replace("intent", "Type"), "the key 'Type' is there twice"),
        (
            "mossbench",
            INFORMATION,
            change("2.metadata.over", "type 4"),
            r"\[2\]: expected one of type 1, type 2",
        ),
        ("mossbench", INFORMATION, change("2.question", None), r"expected text as 'question', got None"),
        ("mossbench", INFORMATION, lambda text: text.replace('"2": {', '"1": {'), "key '1' is there twice"),
        ("mossbench", INFORMATION, lambda text: "[]", "expected an object, got list"),
        (
            "mm-safetybench",
            QUESTIONS,
            change("0.Rephrased Question(SD)", ...),
            r"\[0\]: 'Rephrased Question\(SD\)'",
        ),
        ("hades", INSTRUCTIONS, change("0.id", True), "expected text as 'id', got True"),
        ("hades", INSTRUCTIONS, change("0.keywords", ""), "expected text as 'keywords', got ''"),
        (
            "figstep",
            TABLE,
            lambda text: text.replace("task_id", "task"),
            "the header has no column 'task_id'",
        ),
        (
            "figstep",
            TABLE,
            lambda text: text.replace(",10,", ",ten,"),
            "whole number as 'category_id', got 'ten'",
        ),
        ("figstep", TABLE, lambda text: text + "ForbidQI,3\n", r"safebench.csv:4: expected 6 cells"),
        ("figstep", TABLE, lambda text: text + 'ForbidQI,"3', "not a table of cells"),
        ("figstep", TABLE, lambda text: "", "the header has no column 'dataset'"),
        ("case-bench", CASES, change("0.safe_rate", "0.5"), "expected a number as 'safe_rate', got '0.5'"),
        ("case-bench", CASES, change("0.safe_rate", 1.5), "expected a safe_rate between 0 and 1, got 1.5"),
        ("case-bench", CASES, lambda text: text.replace("0.9", "NaN"), "NaN is no number that is finite"),
        (
            "case-bench",
            CASES,
            lambda text: text.replace("0.9", "1e999"),
            "1e999 is no number that is finite",
        ),
        (
            "case-bench",
            CASES,
            change("1.context.recipient.type", ...),
            r"\[1\].context.recipient: 'type' is missing",
        ),
        ("case-bench", CASES, change("0.context_intended_to_be_safe", 1), "expected true or false"),
        ("demo-world", "test.jsonl", lambda text: text + "{}\n", r"test.jsonl:5: item is missing"),
        (
            "demo-world",
            "test.jsonl",
            lambda text: text.replace("unsafe", "harmful"),
            "harmful is not a known key",
        ),
    ],
)
def test_malformed_files(
    tmp_path: Path, name: str, file: str, spoil: Callable[[str], str], message: str
) -> None:
    folders.FOLDERS[name](tmp_path)
    path = tmp_path / file
    path.write_text(spoil(path.read_text()))
    with pytest.raises(EvalError, match=message) as caught:
        read_benchmark(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_of_hades_that_are_malformed(tmp_path: Path) -> None:
    folders.hades_rows(tmp_path)
    path = tmp_path / "test" / "metadata.jsonl"
    good = path.read_text()
    for old, new, message in (
        ('"step": 5', '"step": null', "whole number as 'step'"),
        ("Self-Harm", "Harm", "expected as scenario one of Animal"),
        ('"file_name": "images', '"file_name": "/images', "leads out of"),
    ):
        path.write_text(good.replace(old, new))
        with pytest.raises(EvalError, match=message):
            read_benchmark("hades", tmp_path)
    path.write_text(good.replace("Self-Harm", "Self-harm"))
    with pytest.raises(EvalError, match=r"2 of 10 items lack their picture"):
        read_benchmark("hades", tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(EvalError, match="is not UTF-8 text"):
        read_json(path)
    with pytest.raises(EvalError, match="cannot be read"):
        read_json(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(EvalError, match="not valid JSON"):
        read_json(path)


@given(st.lists(st.dictionaries(st.text(), st.text(), min_size=1), max_size=4))
def test_lines_end_at_line_feeds_only(
    tmp_path_factory: pytest.TempPathFactory, data: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"
    path.write_text("\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in data), encoding="utf-8")
    assert [record.data for record in read_lines(path)] == data


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), st.integers())
    )
)
def test_tables_keep_their_cells(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    folders.write_table(path, [["text", "number"], *rows])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [
        (row.data["text"], int(row.data["number"])) for row in read_rows(path, ["number", "text"])
    ] == rows


@pytest.mark.parametrize("name", ["/a.png", "../a.png", "a/../../b.png", "..\\a.png", "C:a.png", "\\a.png"])
def test_pictures_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvalError, match="leads out of"):
        picture_path(tmp_path, name, "here")
    assert picture_path(tmp_path, "a/b.png", "here") == tmp_path / "a" / "b.png"


def test_messages_stay_short() -> None:
    with pytest.raises(EvalError) as caught:
        Record({"a": "x" * 1000}, "here").integer("a")
    assert len(str(caught.value)) < 120
