"""What a family's tests need that no other family's do: one row per family, in a file of its own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from safecode_trt.models import Layout, ModelSpec

Array = np.ndarray


def processor_ids(folder: Path, question: str, image: Image.Image, spec: ModelSpec) -> list[int]:
    """The tokens that a family's own processor makes of a question about a picture."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    ids: list[int] = processor(text=text, images=[image])["input_ids"][0]
    return ids


@dataclass(frozen=True, kw_only=True)
class FamilyCase:
    """One row of the tests.

    `processed` runs transformers' own PIL image processor of a checkpoint folder on a picture and returns the
    vision graph's inputs by our names. `token_ids` are those of transformers for a question about it, by default
    its processor's.
    `sizes` are the pictures (width, height) whose layouts the graphs are compared on. `rotary` returns
    transformers' own position ids (axes, n) of a prompt, where they do not just count.
    """

    model_type: str
    processed: Callable[[Path, Image.Image, ModelSpec], Mapping[str, Array]]
    token_ids: Callable[[Path, str, Image.Image, ModelSpec], list[int]] = processor_ids
    sizes: tuple[tuple[int, int], ...] = ((40, 60), (64, 30))
    rotary: Callable[[Path, Array, Layout], Array] | None = None
    # What the tiny checkpoint is made with beside the family's "tiny" size.
    changes: Mapping[str, Any] = field(default_factory=dict)


def cases() -> list[FamilyCase]:
    """All rows, by model_type."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [cast(FamilyCase, importlib.import_module(f"tests.families.{name}").CASE) for name in names]
