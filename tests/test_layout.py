"""The four source folders are one package, whichever way it is reached."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import safecode_trt
from safecode_trt.cli import VERBS

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
LONGEST = 270
# Tables of words and drawing routines, which are long because their lists are.
ALLOWED = {"tools/demo_objects.py": 347, "tools/demo_rules.py": 287}


def packages_in(package: str, folder: Path) -> set[str]:
    inits = folder.rglob("__init__.py")
    return {".".join([package, *i.parent.relative_to(folder).parts]) for i in inits}


def test_every_package_is_shipped() -> None:
    # A folder without __init__.py is our part of somebody else's namespace.
    in_tree = (packages_in(name, ROOT / folder) | {name} for name, folder in FOLDERS.items())
    assert set(SETUPTOOLS["packages"]) == set().union(*in_tree)


def test_the_plug_in_is_mapped() -> None:
    with_sources = {path.parent for path in (ROOT / "optimum_plugin").rglob("*.py")}
    assert with_sources <= {ROOT / folder for folder in FOLDERS.values()}


@pytest.mark.parametrize("package", sorted(name for name in FOLDERS if name.startswith("safecode_trt")))
def test_package_comes_from_its_folder(package: str) -> None:
    (origin,) = set(importlib.import_module(package).__path__)
    assert Path(origin).resolve() == ROOT / FOLDERS[package]


@pytest.mark.parametrize("folder", ["export", "models", "runtime"])
def test_link_points_beside_the_package(folder: str) -> None:
    link = ROOT / "safecode_trt" / folder
    if not link.is_symlink():
        pytest.skip("checked out without symbolic links; an install does not need them")
    assert os.readlink(link) == f"../{folder}"


def test_package_data_is_there() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / FOLDERS[package]).glob(pattern)), (package, pattern)


def test_version_is_written_once() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert safecode_trt.__version__.count(".") == 2


def test_the_console_script_is_the_module() -> None:
    assert PYPROJECT["project"]["scripts"] == {"safecode-trt": "safecode_trt.__main__:main"}


def modules() -> list[Path]:
    folders = ("export", "models", "runtime", "safecode_trt", "optimum_plugin", "tools")
    found = (
        Path(folder, name)
        for top in folders
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py") and name != "__init__.py"
    )
    return sorted(path.relative_to(ROOT) for path in found)


def test_no_two_modules_have_one_name() -> None:
    """Apart from verbs, which are files of cli/, and families, which have one file in each of their folders."""
    verbs = {f"{verb}.py" for verb in VERBS}
    families = {path.name for path in modules() if path.parent == Path("models")}
    own = ("models", "export/families", "tools/random_families")
    names = Counter(
        path.name
        for path in modules()
        if not (path.parent == Path("safecode_trt/cli") and path.name in verbs)
        and not (str(path.parent) in own and path.name in families)
    )
    assert [name for name, count in names.items() if count > 1] == []
    assert names["decode.py"] == 1  # the walk sees the folders


def test_files_are_one_thing() -> None:
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == ALLOWED
