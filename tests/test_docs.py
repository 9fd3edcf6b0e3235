"""The documents name what is there: files, verbs, make targets, links, the version."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import file_map
import safecode_trt
from safecode_trt.cli import VERBS, program

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
DOCUMENTS += list(ROOT.glob("models/demo/*.md"))
TARGETS = {"help", "demo", "test", "check", "bench", "wheel", "train-demo", "clean"}
OTHERS_OPTIONS = {"--system-site-packages"}  # of venv
ALLOWED_ROOTS = {"/proc/meminfo"}

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def test_the_map_is_fresh() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [sys.executable, str(ROOT / "tools" / "file_map.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_map_has_a_line_for_every_document_and_cuts_no_list() -> None:
    with pytest.raises(SystemExit, match=r"new\.md: a document without a line in the map"):
        file_map.say(Path("docs/new.md"))
    assert not any(line.endswith(("...", ",", "(")) for line in file_map.file_map().splitlines())
    long = f"x.py  Measures exports (seconds, memory, {'and more, ' * 12}and openings)"
    with pytest.raises(SystemExit, match="no clause that fits into the map; shorten it"):
        file_map._fit(Path("x.py"), long)
    assert file_map._fit(Path("x.py"), f"{long[:40]}: {long}") == long[:40]


@every_document
def test_no_path_of_one_machine(path: Path) -> None:
    absolute = re.findall(
        r"(?<![\w.:/<~-])(?:/[\w.-]+){2,}|(?<!\w)[A-Z]:\\\w+", path.read_text(encoding="utf-8")
    )
    assert set(absolute) <= ALLOWED_ROOTS


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    inside = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert not [link for link in inside if not (path.parent / link).exists()]


@every_document
def test_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    verbs = re.findall(r"(?m)^(?:\.venv/bin/)?safecode-trt ([a-z]+)\b", text)
    assert set(verbs) <= set(VERBS)
    assert set(re.findall(r"(?m)^make ([a-z-]+)", text)) <= TARGETS


@every_document
def test_options_and_tools_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        return  # it tells of what is gone, too
    tools = set(re.findall(r"\btools/\w+\.py", text))
    assert not [name for name in tools if not (ROOT / name).is_file()]
    assert not set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - options() - OTHERS_OPTIONS


@every_document
def test_the_first_installation_needs_no_package_of_ours_on_an_index(path: Path) -> None:
    """`pip install safecode-trt[...]` adds an extra where the package is installed, and finds nothing elsewhere."""
    commands = re.findall(r"(?m)^(?:\S+/)?pip install .*", path.read_text(encoding="utf-8"))
    assert not [command for command in commands if "safecode-trt" in command]


def options() -> set[str]:
    """The options of all verbs and tools; those of tools by their sources."""
    context = click.Context(program)
    commands = [program, *(program.get_command(context, verb) for verb in VERBS)]
    found = {
        name
        for command in commands
        if command is not None
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }
    for tool in (ROOT / "tools").glob("*.py"):
        found |= set(re.findall(r"\"(--[a-z-]+)\"", tool.read_text(encoding="utf-8")))
    return found


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == TARGETS == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


def test_the_changelog_has_this_version() -> None:
    assert f"## [{safecode_trt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
