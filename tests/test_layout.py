"""The four source folders are one package, whichever way it is reached."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

import safecode_trt

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]


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


def test_extras_of_the_design() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    assert extras == {
        "cpu",
        "gpu",
        "ort-trt-rtx",
        "trt",
        "trt-rtx",
        "cuda",
        "export",
        "optimum",
        "serve",
        "eval",
        "ray",
        "real",
        "dev",
    }
