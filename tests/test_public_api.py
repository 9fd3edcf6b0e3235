"""Every public module lists its names, and every listed name is there."""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path

import pytest

import safecode_trt

ROOT = Path(safecode_trt.__file__).parent


def modules() -> list[str]:
    found = []
    for folder, _, files in os.walk(ROOT, followlinks=True):
        parts = ("safecode_trt", *Path(folder).relative_to(ROOT).parts)
        for file in files:
            name = file.removesuffix(".py")
            if name != file and (name == "__init__" or not name.startswith("_")):
                found.append(".".join(parts if name == "__init__" else (*parts, name)))
    return sorted(found)


@pytest.mark.parametrize("name", modules())
def test_names_exist_once_and_public(name: str) -> None:
    module = importlib.import_module(name)
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    if len(body) <= 1 and name != "safecode_trt":
        return  # a folder's __init__ that only says what the folder is
    assert "__all__" in vars(module), f"{name} has no __all__"
    listed = list(module.__all__)
    assert len(listed) == len(set(listed))
    assert not [item for item in listed if not hasattr(module, item)]
    assert not [item for item in listed if item.startswith("_") and not item.startswith("__")]
    # The order is ruff's RUF022.


def test_the_links_are_followed() -> None:
    assert {"safecode_trt.runtime", "safecode_trt.models.idefics3", "safecode_trt.cli.run"} <= set(modules())
