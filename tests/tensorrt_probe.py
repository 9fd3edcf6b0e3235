"""Holds names against a TensorRT package that is installed, or is at least importable.

Run as a program: the first argument is the package's name, the others are those that the names may be for; the names
come on stdin, what is wrong goes to stdout. Knows nothing of this project, so that an interpreter with little else can
run it.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

MISSING = object()


def problems(module: Any, names: Mapping[str, Any], packages: tuple[str, ...]) -> list[str]:
    """What a package does not have as it is used."""
    found = []
    for use in names["uses"]:
        if use["package"] not in packages:
            continue
        member = reach(module, use["path"])
        if member is MISSING:
            found.append(f"there is no {use['path']}")
        elif use["positional"] is not None and not accepts(member, use["positional"], use["keywords"]):
            given = [*"_" * use["positional"], *use["keywords"]]
            found.append(f"{use['path']} does not take ({', '.join(given)})")
    for subclass in names["subclasses"]:
        base = reach(module, subclass["base"])
        if base is MISSING:
            found.append(f"there is no {subclass['base']}")
            continue
        for name in dir(base):
            method = getattr(base, name)
            if name.startswith("_") or isinstance(method, type) or not callable(method):
                continue
            count = subclass["methods"].get(name)
            if count is None or not accepts(method, count, ()):
                found.append(f"{subclass['base']}.{name} is overridden wrongly or not at all")
    return sorted(set(found))


def reach(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, MISSING)
        if module is MISSING:
            break
    return module


def accepts(function: Any, positional: int, keywords: tuple[str, ...]) -> bool:
    """Whether a signature in the function's docstring, where pybind11 writes them, takes such a call."""
    found = signatures(function)
    return not found or any(
        positional + len(keywords) <= len(names)
        and set(keywords) <= set(names[positional:])
        and set(required[positional:]) <= set(keywords)
        for names, required in found
    )


def signatures(function: Any) -> list[tuple[list[str], list[str]]]:
    """Of each overload, the parameters beside `self`, and those that have no default."""
    name, text, found = function.__name__, function.__doc__ or "", []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> ", text, re.MULTILINE):
        parameters = [part.strip() for part in split(match.group(1))]
        parameters = [part for part in parameters if not part.startswith(("self", "*", "/")) and part]
        names = [re.split(r"[:=]", part)[0].strip() for part in parameters]
        required = [name for name, part in zip(names, parameters, strict=True) if "=" not in part]
        if "*args" not in match.group(1):
            found.append((names, required))
    return found


def split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({<") - (character in "])}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


if __name__ == "__main__":
    package = importlib.import_module(sys.argv[1])
    json.dump(
        {
            "version": package.__version__,
            "problems": problems(package, json.load(sys.stdin), tuple(sys.argv[2:])),
        },
        sys.stdout,
    )
