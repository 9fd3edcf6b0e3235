"""The interface of a model family and the registry of the families.

A spec is read from the JSON files that a checkpoint and a bundle share (config.json,
preprocessor_config.json, processor_config.json). It knows nothing of tensors, graphs or backends.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safecode_trt.errors import CheckpointError
from safecode_trt.models.text import TextConfig, WeightNames

__all__ = ["ModelSpec", "Tiling", "known_model_types", "load_spec", "read_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a picture becomes the vision encoder's inputs.

    The picture is resized to each of `resizes` (width, height) in turn, cut into rows x columns tiles of
    `tile` pixels (none if rows is 0), and the whole, resized to one tile, comes last.
    """

    resizes: tuple[tuple[int, int], ...]
    rows: int
    columns: int
    tile: int

    @property
    def count(self) -> int:
        """How many vision inputs the picture makes."""
        return self.rows * self.columns + 1


class ModelSpec(ABC):
    """What the exporter and the runtime must know of a family; one subclass per model_type."""

    model_type: str
    text: TextConfig
    weights: WeightNames
    image_token_id: int
    image_seq_len: int
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int

    @abstractmethod
    def tiling(self, width: int, height: int) -> Tiling:
        """The tiles of a picture of this size."""

    @property
    @abstractmethod
    def image_placeholder(self) -> str:
        """The text that the chat template writes where a picture goes."""

    @abstractmethod
    def image_text(self, tiling: Tiling) -> str:
        """The text that replaces the placeholder: one image token per image feature, with its markers."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a missing or broken file is a CheckpointError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; expected a Hugging Face checkpoint folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def known_model_types() -> tuple[str, ...]:
    """The families that have a file in this folder."""
    import safecode_trt.models as package

    files = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(set(files) - {"rope", "spec", "text"}))


def load_spec(folder: Path) -> ModelSpec:
    """The spec of the checkpoint or bundle in `folder`.

    Raises:
        CheckpointError: the folder has no usable config.json, or its model_type is unknown.
    """
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    known = known_model_types()
    if not isinstance(model_type, str) or not re.fullmatch(r"\w+", model_type) or model_type not in known:
        raise CheckpointError(f"model_type {model_type!r} is not supported; known: {', '.join(known)}")
    module = importlib.import_module(f"safecode_trt.models.{model_type}")
    return cast(ModelSpec, module.load(folder, config))
