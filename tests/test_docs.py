"""The documents name what is there: files, verbs, make targets, links, the version."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import pytest

import file_map
import safecode_trt
from safecode_trt.cli import VERBS, program

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
DOCUMENTS += list(ROOT.glob("models/demo/*.md"))
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
OTHERS_OPTIONS = {"--system-site-packages"}  # of venv
ALLOWED_ROOTS = {"/proc/meminfo"}


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


def wrong(find: Callable[[Path, str], Iterable[str]]) -> dict[str, list[str]]:
    """What `find` objects to in each document."""
    found = {path.name: list(find(path, path.read_text(encoding="utf-8"))) for path in DOCUMENTS}
    assert len(found) > 10
    return {name: objections for name, objections in found.items() if objections}


def test_no_path_of_one_machine() -> None:
    absolute = r"(?<![\w.:/<~-])(?:/[\w.-]+){2,}|(?<!\w)[A-Z]:\\\w+"
    assert wrong(lambda path, text: set(re.findall(absolute, text)) - ALLOWED_ROOTS) == {}


def test_links_lead_somewhere() -> None:
    def dead(path: Path, text: str) -> Iterable[str]:
        links = re.findall(r"\]\(([^)\s]+)\)", text)
        inside = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
        return [link for link in inside if not (path.parent / link).exists()]

    assert wrong(dead) == {}


def test_commands_exist() -> None:
    def unknown(path: Path, text: str) -> Iterable[str]:
        verbs = re.findall(r"(?m)^(?:\.venv/bin/)?safecode-trt ([a-z]+)\b", text)
        return [*(set(verbs) - set(VERBS)), *(set(re.findall(r"(?m)^make ([a-z-]+)", text)) - TARGETS)]

    assert wrong(unknown) == {}


def test_options_and_tools_exist() -> None:
    known = options() | OTHERS_OPTIONS

    def unknown(path: Path, text: str) -> Iterable[str]:
        if path.name == "CHANGELOG.md":
            return []  # it tells of what is gone, too
        tools = {name for name in re.findall(r"\btools/\w+\.py", text) if not (ROOT / name).is_file()}
        return [*tools, *(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - known)]

    assert wrong(unknown) == {}


def test_the_first_installation_needs_no_package_of_ours_on_an_index() -> None:
    """`pip install safecode-trt[...]` adds an extra where the package is installed, and finds nothing elsewhere."""
    install = r"(?m)^(?:\S+/)?pip install .*"
    assert wrong(lambda path, text: [c for c in re.findall(install, text) if "safecode-trt" in c]) == {}


def test_a_newcomer_can_read_the_readme() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


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
    assert set(phony.split()) == TARGETS and {"demo", "test"} <= TARGETS


def test_the_changelog_has_this_version() -> None:
    assert f"## [{safecode_trt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
