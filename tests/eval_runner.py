"""Runs `eval` on small folders with the null backend, and reads what it has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import Result

from tests.cli_runner import call

Lines = list[dict[str, Any]]


def evaluate(
    bundle: Path, data: Path, output: Path, *options: object, benchmark: str = "demo-world"
) -> Result:
    arguments = ("--benchmark", benchmark, "--data", data, "--output", output, "--max-new-tokens", 4)
    return call("eval", bundle, *arguments, "--backend", "null", *options)


def lines(folder: Path, name: str = "results.jsonl") -> Lines:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def arms(folder: Path) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in summary(folder)["arms"]}


def answers(folder: Path) -> dict[tuple[str, str], str]:
    return {(line["key"], line["mode"]): line["answer"] for line in lines(folder)}


def say(folder: Path, **words: str) -> None:
    """Puts other words into the mouths of modes (dashes as underscores), as if they had answered so."""
    changed = [
        {**line, "answer": words.get(line["mode"].replace("-", "_"), line["answer"])}
        for line in lines(folder)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
