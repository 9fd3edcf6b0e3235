"""What the random checkpoints of each family look like: configurations in real and tiny sizes, and their files."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

__all__ = ["RandomFamily", "families", "family", "text_family"]

TEXT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 352,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomFamily:
    """One family: `sizes` are keyword arguments of transformers' configuration class, by name.

    The real ones have as many weights as the published files are large (tests/test_random_sizes.py).

    `specials` are the control tokens; the id of each is its place, and `added` are those after all others, as in
    a vocabulary that was extended. `preprocessor` makes preprocessor_config.json
    of a configuration, `processor` processor_config.json, neither of which text-only families have, and `write_more`
    writes what else the family has.
    """

    config_class: str
    sizes: Mapping[str, Mapping[str, Any]]
    specials: tuple[str, ...]
    bos: str
    eos: str
    pad: str
    chat_template: str | None
    preprocessor: Callable[[Any], dict[str, Any]] = lambda config: {}
    processor: Callable[[Any], dict[str, Any]] = lambda config: {}
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


def text_family(config_class: str, sizes: Mapping[str, Mapping[str, Any]]) -> RandomFamily:
    """A text-only family; `sizes` are the real ones and what its tiny one has beyond `TINY_TEXT`."""
    return RandomFamily(
        config_class=config_class,
        sizes={**sizes, "tiny": TINY_TEXT | dict(sizes.get("tiny", {}))},
        specials=TEXT_SPECIALS,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        chat_template=TEXT_TEMPLATE,
        words=("Yes", "No"),
    )


def families() -> tuple[str, ...]:
    """The families that have a file in this folder, by model_type."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def family(name: str) -> RandomFamily:
    """The family of a model_type."""
    return cast(RandomFamily, importlib.import_module(f"random_families.{name}").FAMILY)
