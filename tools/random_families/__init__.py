"""What the random checkpoints of each family look like: configurations in real and tiny sizes, and their files."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

__all__ = ["RandomFamily", "families", "family"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomFamily:
    """One family: `sizes` are keyword arguments of transformers' configuration class, by name.

    The real ones have as many weights as the published files are large (tests/test_random_sizes.py).

    `specials` are the control tokens; the id of each is its place, and `added` are those after all others, as in
    a vocabulary that was extended. `preprocessor` makes preprocessor_config.json
    of a configuration, `processor` processor_config.json, and `write_more` writes what else the family has.
    """

    config_class: str
    sizes: Mapping[str, Mapping[str, Any]]
    specials: tuple[str, ...]
    bos: str
    eos: str
    pad: str
    preprocessor: Callable[[Any], dict[str, Any]]
    processor: Callable[[Any], dict[str, Any]]
    chat_template: str | None
    # Whether the tokenizer itself puts `bos` in front, as those of Llama do.
    adds_bos: bool = False
    # Single tokens in addition to the usual ones, with \u0120 for a space in front.
    words: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    write_more: Callable[[Path, Any], None] = field(default=lambda folder, config: None)

    def ids(self) -> dict[str, int]:
        """The ids of the three tokens that every configuration names."""
        tokens = {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}
        return {name: self.specials.index(token) for name, token in tokens.items()}


def families() -> tuple[str, ...]:
    """The families that have a file in this folder, by model_type."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def family(name: str) -> RandomFamily:
    """The family of a model_type."""
    return cast(RandomFamily, importlib.import_module(f"random_families.{name}").FAMILY)
