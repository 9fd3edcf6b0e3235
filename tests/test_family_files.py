"""A family is four files, a text-only one two, and no other file asks for its name."""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from safecode_trt.models import known_model_types, text_only

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "export/families", "tools/random_families", "tests/families")
KNOWN = set(known_model_types())
TEXT_ONLY = {
    name for name in KNOWN if importlib.import_module(f"safecode_trt.models.{name}").load is text_only.load
}


def sources(*folders: str) -> list[Path]:
    """The Python files of folders, without those of the families' own folders."""
    found = {
        Path(folder, name).relative_to(ROOT)
        for top in folders
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py")
    }
    own = [ROOT.joinpath(folder).relative_to(ROOT) for folder in FOLDERS]
    return sorted(path for path in found if not any(path.is_relative_to(folder) for folder in own))


def literals(tree: ast.AST) -> Iterator[str]:
    """The families that are named in string literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in KNOWN:
            yield str(node.value)


def branches(tree: ast.AST) -> Iterator[str]:
    """The families that decide which way the code goes; an assertion may name one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield from literals(node.test)
        elif isinstance(node, ast.comprehension):
            yield from (name for test in node.ifs for name in literals(test))
        elif isinstance(node, ast.match_case):
            yield from literals(node.pattern)


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def test_every_family_has_its_files() -> None:
    for folder in FOLDERS:
        there = {path.stem for path in (ROOT / folder).glob("*.py")}
        seen = folder in ("export/families", "tests/families")
        assert there & KNOWN == (KNOWN - TEXT_ONLY if seen else KNOWN), folder


def test_some_families_have_no_pictures() -> None:
    assert TEXT_ONLY and TEXT_ONLY < KNOWN


def test_the_package_names_no_family() -> None:
    paths = sources("safecode_trt", "export", "runtime", "optimum_plugin")
    assert not [(str(path), name) for path in paths for name in literals(parse(path))]


def test_tools_and_generic_tests_do_not_branch_on_a_family() -> None:
    generic = [path.relative_to(ROOT) for path in (ROOT / "tests").glob("*family*.py")]
    paths = [*sources("tools"), *generic]
    assert not [(str(path), name) for path in paths for name in branches(parse(path))]


def test_what_would_be_found() -> None:
    name = min(KNOWN)
    texts = ("if x == {!r}: pass", "y = 1 if {!r} in x else 2", "[i for i in x if i != {!r}]")
    for text in (*texts, "match x:\n  case {!r}: pass"):
        tree = ast.parse(text.format(name))
        assert list(literals(tree)) == list(branches(tree)) == [name]
    tree = ast.parse(f"assert x == {name!r}")
    assert list(literals(tree)) == [name] and not list(branches(tree))
