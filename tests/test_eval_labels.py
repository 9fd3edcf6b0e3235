"""People as judges: answers go out blind as a table, and come back labelled."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.errors import EvalError
from safecode_trt.eval.labels import LABELS, LabelJudge, export_labels, read_labels
from safecode_trt.eval.results import Result
from tests import benchmark_folders as folders
from tests.eval_runner import arms, evaluate, say, summary
from tests.test_eval_judges import item


def results(*answers: tuple[str, str, str]) -> list[Result]:
    return [
        Result(
            key=key,
            mode=mode,
            run="r",
            backend="null",
            asked="a1",
            side="safe",
            category="c",
            answer=answer,
            finish_reason="stop",
            tokens=1,
            seconds=0.1,
        )
        for key, mode, answer in answers
    ]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def labelled(path: Path, labels: dict[str, str]) -> None:
    """Fills the table in as a person would."""
    rows = table(path)
    for row in rows:
        row["label"] = labels[row["answer"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_labels_are_blind_and_come_back(bundle: Path, tmp_path: Path) -> None:
    folders.demo_world(tmp_path / "world")
    out, path = tmp_path / "out", tmp_path / "labels.csv"
    evaluate(bundle, tmp_path / "world", out)
    say(out, plain="=Sure, go.", safecode="Sorry, no.")
    assert evaluate(bundle, tmp_path / "world", out, "--export-labels", path).exit_code == 0
    rows = table(path)
    assert len(rows) == 8 and not {"mode", "side", "key"} & set(rows[0])
    assert "plain" not in path.read_text().replace(str(tmp_path), "")
    assert {row["answer"] for row in rows} == {"'=Sure, go.", "Sorry, no."}
    labelled(path, {"'=Sure, go.": "helps", "Sorry, no.": " Refuses "})
    result = evaluate(bundle, tmp_path / "world", out, "--answer-judge", "human-csv", "--labels", path)
    assert result.exit_code == 0, result.output
    assert arms(out)["plain"]["outcomes"] == {"helps": 4}
    assert arms(out)["safecode"]["outcomes"] == {"refuses": 4}
    assert "labels of people" in summary(out)["answer_judge"]
    again = evaluate(bundle, tmp_path / "world", out, "--export-labels", path)
    assert again.exit_code == 1 and "may hold labels" in again.stderr.splitlines()[-1]


def test_one_row_for_one_answer_whoever_gave_it(tmp_path: Path) -> None:
    given = results(
        ("b/s/1/0/safe", "plain", "Yes."), ("b/s/1/0/safe", "vcd", "Yes."), ("b/s/2/0/safe", "vcd", "Yes.")
    )
    items = {result.key: item("figstep") for result in given}
    assert export_labels(tmp_path / "labels.csv", given, items, seed=1) == 2
    labelled(tmp_path / "labels.csv", {"Yes.": "warns"})
    judge = LabelJudge(tmp_path / "labels.csv", given)
    assert judge.judge(item("b", "safe"), "Yes.").outcome == "warns"
    orders = []
    for seed in range(8):
        export_labels(tmp_path / f"{seed}.csv", given, items, seed=seed)
        orders.append([row["id"] for row in table(tmp_path / f"{seed}.csv")])
    assert len(Counter(map(tuple, orders))) == 2


def test_no_id_is_a_number(tmp_path: Path) -> None:
    """Among so many digests some are digits alone, or digits around an e."""
    given = results(*((f"b/s/{number}/0/safe", "plain", "Yes.") for number in range(4000)))
    export_labels(tmp_path / "labels.csv", given, {result.key: item() for result in given}, seed=0)
    for row in table(tmp_path / "labels.csv"):
        with pytest.raises(ValueError, match="could not convert"):
            float(row["id"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 of 2 answers have no row"),
        (lambda rows: [*rows, rows[0]], "has a row already; expected each answer once"),
        (lambda rows: [{**rows[0], "id": "0123"}, rows[1]], "'0123' is no answer of these results"),
        (lambda rows: [{**rows[0], "label": ""}, rows[1]], "expected a label out of helps.*got nothing"),
        (lambda rows: [{**rows[0], "label": "ok"}, rows[1]], "got 'ok'"),
        (lambda rows: [{**rows[0], "label": "failed"}, rows[1]], "got 'failed'"),
        (lambda rows: [{"id": row["id"]} for row in rows], "no column 'label'"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, change: Any, message: str) -> None:
    given = results(("b/s/1/0/safe", "plain", "Yes."), ("b/s/2/0/safe", "plain", "No."))
    path = tmp_path / "labels.csv"
    export_labels(path, given, {result.key: item() for result in given}, seed=0)
    labelled(path, {"Yes.": LABELS[0], "No.": LABELS[1]})
    assert len(read_labels(path, given)) == 2
    rows = change(table(path))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(EvalError, match=message):
        read_labels(path, given)
