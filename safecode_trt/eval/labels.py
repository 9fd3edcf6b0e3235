"""Labels by people: answers go out as a table that does not say how they were decoded, and come back with labels.

A row is an answer to an item, once for all modes that gave it. Its id is a digest of both, so that no file has to
remember who gave it; a label counts for every mode with that answer.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from safecode_trt.errors import EvalError
from safecode_trt.eval.benchmarks import EvalItem
from safecode_trt.eval.benchmarks.files import read_rows
from safecode_trt.eval.judging import Opinion
from safecode_trt.eval.line_log import write_whole
from safecode_trt.eval.metrics import OUTCOMES, UNKNOWN, Outcome
from safecode_trt.eval.results import FAILED, Result

__all__ = ["COLUMNS", "LABELS", "LabelJudge", "export_labels", "read_labels"]

COLUMNS = ("id", "picture", "request", "answer", "label")
LABELS: tuple[Outcome, ...] = tuple(outcome for outcome in OUTCOMES if outcome not in UNKNOWN)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_labels(path: Path, results: Iterable[Result], items: Mapping[str, EvalItem], *, seed: int) -> int:
    """Writes a table with an empty label for every different answer, shuffled; returns the number of rows.

    Raises:
        EvalError: the file is there already, for it may hold somebody's labels, or cannot be written.
    """
    if path.exists():
        raise EvalError(f"{path} is there already and may hold labels; choose another file")
    rows = {}
    for result in results:
        if result.finish_reason != FAILED:
            item = items[result.key]
            cells = (str(item.picture or ""), item.prompt, result.answer)
            rows[_answer_id(result.key, result.answer)] = [_harmless(cell) for cell in cells]
    order = sorted(rows)
    random.Random(seed).shuffle(order)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows([identity, *rows[identity], ""] for identity in order)
    write_whole(path, table.getvalue())
    return len(order)


def read_labels(path: Path, results: Iterable[Result]) -> dict[str, Outcome]:
    """The labels of a table by answer, every answer of `results` having exactly one.

    Raises:
        EvalError: the file is no such table, a label is missing, unknown or given twice, an answer has no row, or a
            row belongs to no answer of these results.
    """
    known = {
        _answer_id(result.key, result.answer): result for result in results if result.finish_reason != FAILED
    }
    labels: dict[str, Outcome] = {}
    known_labels = {str(outcome): outcome for outcome in LABELS}
    for row in read_rows(path, ("id", "label")):
        identity, label = row.text("id"), str(row.data["label"]).strip().lower()
        if identity not in known:
            raise EvalError(f"{row.where}: {identity!r} is no answer of these results; is it of another run?")
        if identity in labels:
            raise EvalError(f"{row.where}: {identity!r} has a row already; expected each answer once")
        if label not in known_labels:
            shown = repr(label) if label else "nothing"
            raise EvalError(f"{row.where}: expected a label out of {', '.join(LABELS)}, got {shown}")
        labels[identity] = known_labels[label]
    missing = sorted(known.keys() - labels.keys())
    if missing:
        raise EvalError(
            f"{path}: {len(missing)} of {len(known)} answers have no row, the first is {missing[0]}"
        )
    return labels


class LabelJudge:
    """Answers are what people say they are."""

    cached = False

    def __init__(self, path: Path, results: Iterable[Result]) -> None:
        self._labels = read_labels(path, results)
        self.name = f"labels of people ({path.name})"

    def judge(self, item: EvalItem, answer: str) -> Opinion:
        """The label."""
        return Opinion(outcome=self._labels[_answer_id(item.key, answer)])


def _answer_id(key: str, answer: str) -> str:
    # The letter keeps spreadsheets from taking digits, or digits with an e between them, for a number.
    return "a" + hashlib.sha256(f"{key}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
