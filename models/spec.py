"""The interface of a model family and the registry of the families.

A spec is read from the JSON files that a checkpoint and a bundle share (config.json, processor_config.json,
preprocessor_config.json). It knows nothing of tensors, graphs or backends.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError, ConfigError, PromptError
from safecode_trt.models.layout import Layout
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = [
    "Array",
    "CrossAttention",
    "Features",
    "Floats",
    "ModelSpec",
    "added_tokens",
    "known_model_types",
    "load_spec",
    "read_json",
    "read_preprocessor",
]

# The files of this folder that are no family's.
SHARED = {"layout", "patches", "pixels", "rope_config", "spec", "text_config", "text_only", "tower"}

Array = NDArray[Any]
Floats = NDArray[np.float32]
Features = Mapping[str, Floats]
"""What the vision encoder says of a picture, by name; axis 0 counts positions, and pictures are joined on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttention:
    """Gated layers that look at the pictures, one in front of every `interval`-th layer of the decoder.

    Layer j finds its keys and values in the row inputs `cross_key.{j}` and `cross_value.{j}` (C, S, H, D); the
    token inputs `cross_attention_bias` (C, T, S) and `cross_attention_gate` (C, T, 1) say who sees what. `layer`
    holds {j} for its index in the checkpoint, `gate_shape` is that of its two gates, and with `qk_norm` its
    queries are normalised.
    """

    interval: int
    layer: str
    gate_shape: tuple[int, ...]
    qk_norm: bool


class ModelSpec(ABC):
    """What the exporter and the runtime need to know about a family; one subclass per model_type.

    A `text_only` family has no vision encoder and no image token; `text_only.py` is its spec.

    `renames` turn the beginnings of tensor names, as older checkpoints have them, into those that `weights` and
    the family's vision encoder use. `joins` name tensors that the checkpoint has in several parts, which follow
    one another on axis 0. `chat_template` stands in for a checkpoint without one, and `end_token_ids` end an
    answer in addition to those that the checkpoint's settings name.
    """

    model_type: str
    text_only: ClassVar[bool] = False
    text: TextConfig
    weights: WeightNames
    image_token_id: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    renames: tuple[tuple[str, str], ...] = ()
    joins: tuple[tuple[str, tuple[str, ...]], ...] = ()
    cross_attention: CrossAttention | None = None
    end_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    # Where the vision encoder reads the request's words: their tokenizer's file in the checkpoint folder, and how
    # many tokens it takes.
    words_tokenizer: str | None = None
    max_words: int | None = None
    # The most tiles that a picture is cut into; None is the checkpoint's own limit.
    max_tiles: int | None = None
    # How many pictures a prompt can show, None for any number.
    max_pictures: int | None = None
    # Whether the image tokens stand in front of the whole prompt, even of a first token that the tokenizer adds.
    pictures_first: bool = False

    def require_pictures(self, count: int) -> None:
        """Holds a prompt's number of pictures against what the model can see.

        Raises:
            PromptError: there are more than `max_pictures`.
        """
        most = self.max_pictures
        if most is None or count <= most:
            return
        given = "1 picture was" if count == 1 else f"{count} pictures were"
        raise PromptError(
            f"{given} given, but {self.model_type} takes at most {most} in a conversation; ask about them one by one"
        )

    @abstractmethod
    def layout(self, width: int, height: int) -> Layout:
        """The views of a picture of this size.

        Raises:
            PictureError: the family has no layout for such a picture.
        """

    def with_max_tiles(self, max_tiles: int) -> ModelSpec:
        """This spec with at most `max_tiles` tiles for a picture, in addition to the whole picture; 0 leaves only that.

        Families that cut pictures return a copy with another `max_tiles`, which their layouts keep to.

        Raises:
            ConfigError: the family does not cut pictures.
        """
        raise ConfigError(
            f"has no effect: {self.model_type} does not cut pictures into tiles; leave it out",
            field="max_tiles",
        )

    @property
    @abstractmethod
    def reference_layout(self) -> Layout:
        """The layout of the picture that stands for none, and of those that an export is tested with."""

    @property
    @abstractmethod
    def image_placeholder(self) -> str | None:
        """The text that the chat template writes where a picture goes.

        None where the template takes a message's text as it is, and no list of its pictures and texts.
        """

    @abstractmethod
    def image_text(self, layout: Layout) -> str:
        """The text that replaces the placeholder: `layout.tokens` image tokens with their markers."""

    def prompt_text(self, text: str) -> str:
        """A prompt with its pictures' texts in it, as the family's processor joins them to what is around them."""
        return text

    @abstractmethod
    def vision_graph(self, dtype: str) -> GraphSpec:
        """The vision encoder's inputs and outputs; every input's first axis is P. Text-only families have none."""

    def vision_inputs(
        self, views: Sequence[Floats], layout: Layout, words: NDArray[np.int64] | None
    ) -> Mapping[str, Array]:
        """The vision encoder's inputs for one picture: `views` are normalised, each (3, height, width).

        `words` (n,) are the request's, where the family has a `words_tokenizer`.
        """
        return {"pixel_values": np.stack(views)}

    def features(self, outputs: Mapping[str, Floats], layout: Layout) -> Features:
        """One picture's features from the vision encoder's outputs, in the order of its image tokens.

        `image_features` (tokens, E) replace the embeddings of the image tokens; others are the family's own.
        """
        found = outputs["image_features"]
        return {"image_features": found.reshape(-1, found.shape[-1])}

    def reference_features(self, features: Features, layout: Layout) -> Features:
        """The features of the picture that stands for none, repeated as often as a picture's layout needs."""
        return {name: np.resize(x, (layout.tokens, *x.shape[1:])) for name, x in features.items()}

    def decoder_inputs(self, dtype: str) -> tuple[TensorSpec, ...]:
        """Inputs of the decoder beyond those of every family: (C, T, ...) for each token, (C, ...) for each row.

        A token input `deepstack.{i}` (C, T, E) is added to the hidden state after layer i.
        """
        return ()

    def positions(self, token_ids: NDArray[np.int64], layouts: Sequence[Layout]) -> NDArray[np.int64]:
        """Rotary positions (axes, n + 1) of a prompt; the last is that of the first token after it."""
        return np.arange(len(token_ids) + 1, dtype=np.int64)[None]

    def token_inputs(self, token_ids: NDArray[np.int64], features: Features) -> Mapping[str, Array]:
        """The decoder's own inputs for each token of a prompt, each (n + 1, ...): the last for all that follow."""
        return {}

    def row_inputs(self, features: Features) -> Mapping[str, Array]:
        """The decoder's own inputs for a whole row."""
        return {}


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


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The image processor's settings: of processor_config.json, else of preprocessor_config.json.

    Transformers 5 writes them into the first; older files of that name do not have them.

    Raises:
        CheckpointError: no file has them, or one is broken.
    """
    path = folder / "processor_config.json"
    settings = read_json(path).get("image_processor") if path.is_file() else None
    if settings is None:
        return read_json(folder / "preprocessor_config.json")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: image_processor must be a JSON object, got {settings!r}")
    return settings


def added_tokens(folder: Path) -> dict[str, int]:
    """The ids of the tokens that were added to the tokenizer's vocabulary."""
    added = read_json(folder / "tokenizer.json").get("added_tokens") or []
    return {token["content"]: int(token["id"]) for token in added}


def known_model_types() -> tuple[str, ...]:
    """The families that have a file in this folder."""
    files = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(set(files) - SHARED))


def load_spec(folder: Path, *, max_tiles: int | None = None) -> ModelSpec:
    """The spec of the checkpoint or bundle in `folder`; a bundle's manifest says its `max_tiles`.

    Raises:
        CheckpointError: the folder has no usable config.json, its model_type is unknown, or a setting is missing
            or of the wrong type.
        ConfigError: `max_tiles` is given, and the family does not cut pictures.
    """
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    known = known_model_types()
    if not isinstance(model_type, str) or not re.fullmatch(r"\w+", model_type) or model_type not in known:
        raise CheckpointError(f"model_type {model_type!r} is not supported; known: {', '.join(known)}")
    module = importlib.import_module(f"safecode_trt.models.{model_type}")
    try:
        spec = cast(ModelSpec, module.load(folder, config))
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: config.json or the image processor's settings have no key {error}; "
            "is the checkpoint complete?"
        ) from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: a value in config.json or the image processor's settings cannot be used: {error}"
        ) from error
    return spec if max_tiles is None else spec.with_max_tiles(max_tiles)
