"""The chat template of a bundle or checkpoint folder: found, and compiled in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from safecode_trt.errors import BundleError

__all__ = ["read_settings", "read_template"]

PROCESSOR, LEGACY, MODERN = "processor_config.json", "chat_template.json", "chat_template.jinja"


class GenerationTag(Extension):
    """`{% generation %}` marks what the assistant said, for training; here its body is rendered and no more."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def read_template(folder: Path, settings: Mapping[str, Any], default: str | None) -> jinja2.Template:
    """The template of the processor's files, else of tokenizer_config.json's `settings`, else `default`.

    Raises:
        BundleError: there is none, or it is broken.
    """
    source = _source(folder, settings.get("chat_template") or default)
    if not isinstance(source, str):
        raise BundleError(f"{folder} has no {MODERN}; expected the template of an instruct model")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, LoopControlExtension]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BundleError(f"{folder}: the chat template is broken: {error}") from error


def read_settings(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file that need not be there.

    Raises:
        BundleError: the file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _source(folder: Path, other: object) -> object:
    """The template of the processor, in the order in which transformers looks for it, else the tokenizer's."""
    for name in (PROCESSOR, LEGACY):
        if (found := read_settings(folder / name).get("chat_template")) is not None:
            return _default(found)
    if (folder / MODERN).is_file():
        return (folder / MODERN).read_text(encoding="utf-8")
    return _default(other)


def _default(found: object) -> object:
    """The template named default, where there are several by name."""
    if isinstance(found, list):
        return next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
