"""Every public module lists its names, and every listed name is there."""

from __future__ import annotations

import ast
import importlib
import os
import re
from pathlib import Path

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


def test_every_module_lists_its_names() -> None:
    wrong = []
    for name in modules():
        module = importlib.import_module(name)
        body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
        if len(body) <= 1 and name != "safecode_trt":
            continue  # a folder's __init__ that only says what the folder is
        listed = list(vars(module).get("__all__", ["no __all__"]))
        wrong += [f"{name}.{item}" for item in listed if not hasattr(module, item)]
        wrong += [f"{name}.{item}" for item in listed if re.match(r"_(?!_)", item)]
        wrong += [f"{name} twice" for _ in range(len(listed) - len(set(listed)))]
    assert not wrong


def test_the_links_are_followed() -> None:
    assert {"safecode_trt.runtime", "safecode_trt.models.idefics3", "safecode_trt.cli.run"} <= set(modules())
