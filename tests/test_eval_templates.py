"""The words that benchmarks are asked in, ours or from a file; and the keys of items."""

from __future__ import annotations

from pathlib import Path

import pytest

from safecode_trt.errors import EvalError
from safecode_trt.eval.benchmarks import (
    BENCHMARKS,
    RUBRICS,
    TEMPLATES,
    EvalItem,
    load_templates,
    read_benchmark,
)
from tests import benchmark_folders as folders


def test_templates_have_their_places() -> None:
    for name, template in TEMPLATES.items():
        assert template.count("{request}") == 1 and template.count("{context}") == (name == "case-bench")
    tasks = {split.replace("-", ".") for split in BENCHMARKS["mssbench"].splits}
    assert {name.removeprefix("mssbench.") for name in TEMPLATES} == tasks | {"case-bench"}


def test_templates_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    folders.write_json(path, {"mssbench.chat.if": "Query: {request} {Recep}"})
    chosen = load_templates(path)
    assert chosen == {**TEMPLATES, **RUBRICS, "mssbench.chat.if": "Query: {request} {Recep}"}
    folders.mssbench(tmp_path)
    item = read_benchmark("mssbench", tmp_path, splits=["chat-if"], templates=chosen).items[0]
    assert item.prompt == "Query: how do I run backwards? {Recep}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mssbench": "{request}"}, "no template is called 'mssbench'"),
        ({"mssbench.chat.if": "hello"}, r"must have {request} once, has it 0 times"),
        ({"mssbench.chat.if": "{request}{request}"}, "has it 2 times"),
        ({"case-bench": "{request}"}, r"must have {context} once"),
        ({"rubric.class": "Judge this."}, r"must have {answer} once, has it 0 times"),
        ({"rubric.hades": "{answer}{request}{request}"}, r"must have {request} at most once"),
        ({"rubric.case-bench": "{answer}"}, "no template is called 'rubric.case-bench'"),
        ({"case-bench": 3}, "expected text as 'case-bench', got 3"),
        ([], "expected an object, got list"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, data: object, message: str) -> None:
    folders.write_json(tmp_path / "templates.json", data)
    with pytest.raises(EvalError, match=message):
        load_templates(tmp_path / "templates.json")


@pytest.mark.parametrize("change", [{"item": "a/b"}, {"query": ""}, {"split": " x"}])
def test_keys_can_be_taken_apart(change: dict[str, str]) -> None:
    parts = {"benchmark": "b", "split": "s", "item": "i", "query": "q", **change}
    with pytest.raises(EvalError, match="is no key of an item"):
        EvalItem(**parts, side="safe", prompt="p", picture=None, category="c")  # type: ignore[arg-type]
