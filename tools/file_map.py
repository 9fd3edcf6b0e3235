"""Writes docs/map.md, the map of the repository, from the first lines of the files; --check only compares."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "map.md"
HEAD = """# Where things are

Every file in one line: the first sentence of its docstring. `python tools/file_map.py` writes this page.

"""
WIDTH = 118
OTHERS = {
    ".ci/run": "what continuous integration runs",
    "CONTRIBUTING.md": "where code goes, and how it looks",
    "Makefile": "the verbs of developers; `make help` lists them",
    "docs/adding-a-family.md": "the four files of a family, and what holds them to transformers",
    "docs/architecture.md": "the data flow, the phases of a reply, who owns memory",
    "docs/map.md": "this page",
    "docs/performance.md": "what it does and what it costs, with the commands that measured it",
    "docs/python.md": "the package in Python: opening, replies, modes, judges, errors",
    "docs/security.md": "what a bundle, a picture, a prompt or a judge may do, and what stops it",
    "docs/stability.md": "what may change between versions, and how it is announced",
    "docs/modes.md": "every mode: its formula, its settings, what differs from its source",
    "docs/desktop.md": "engines and ONNX Runtime on a desktop's GPU",
    "docs/evaluation.md": "the benchmarks' folders, the metrics, the results file",
    "docs/jetson.md": "JetPack's versions, installing, building, memory, what doctor says",
    "docs/judges.md": "who gives the verdict, what fails and how, calibration, refusals that say why",
    "docs/results-demo.md": "what every mode does in the demo world, as tools/results_demo.py wrote it",
    "docs/trace.md": "the record of a reply, its keys, and what explain shows of it",
    "pyproject.toml": "packaging, extras, the settings of ruff, mypy and pytest",
}
FOLDERS = {
    "docs/benchmarks": "measurements, as the tools that they name wrote them",
    "models/demo": "the small trained checkpoint, its card and its eight scenes",
    "examples": "pictures to ask about",
}
KNOWN = {"README.md", "CHANGELOG.md"}


def tracked() -> list[Path]:
    """The files of the repository, new ones included, ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({Path(name) for name in names if (ROOT / name).is_file()})


def say(path: Path) -> str | None:
    """A file's line: the first of its docstring, or ours."""
    if path.suffix != ".py":
        line = OTHERS.get(str(path))
        if path.suffix == ".md" and not line and str(path.parent) not in FOLDERS and path.name not in KNOWN:
            sys.exit(f"{path}: a document without a line in the map; add one to {Path(__file__).name}")
        return line
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return docstring.splitlines()[0].rstrip(".") if docstring else None


def file_map() -> str:
    """The map as a block of text."""
    lines, last = [], None
    for path in sorted(tracked(), key=lambda path: (path.parent != Path(), str(path.parent), path.name)):
        if path.parts[0] == "tests" or not (line := say(path)):
            continue
        if path.parent != last:
            last = path.parent
            lines += ["", f"{last}/"] if last != Path() else []
        indent = "  " if path.parent != Path() else ""
        lines.append(_fit(path, f"{indent}{path.name:22}  {line}"))
    lines += [
        "",
        *(f"{folder + '/':24}  {text}" for folder, text in FOLDERS.items() if (ROOT / folder).is_dir()),
    ]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _fit(path: Path, line: str) -> str:
    """The line, or as many of its clauses as there is room for; never a part of a list or of what is in brackets."""
    for mark in (". ", "; ", ": "):
        if len(line) <= WIDTH:
            break
        line = line.split(mark)[0]
    if len(line) > WIDTH:
        sys.exit(f"{path}: the first line of the docstring has no clause that fits into the map; shorten it")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the map is stale")
    check = parser.parse_args().check
    fresh = HEAD + file_map()
    if check and (not MAP.is_file() or fresh != MAP.read_text(encoding="utf-8")):
        sys.exit("docs/map.md is stale; run `python tools/file_map.py`")
    if not check:
        MAP.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
