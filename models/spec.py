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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout

__all__ = [
    "Features",
    "ModelSpec",
    "TextConfig",
    "WeightNames",
    "known_model_types",
    "load_spec",
    "read_json",
]

Array = NDArray[Any]
Floats = NDArray[np.float32]
Features = Mapping[str, Floats]
"""What the vision encoder says of a picture, by name; axis 0 counts positions, and pictures are joined on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text decoder in config.json's own words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool

    @classmethod
    def from_config(cls, text: Mapping[str, Any], *, tie_word_embeddings: bool) -> TextConfig:
        """Reads a Llama-like `text_config`.

        Raises:
            CheckpointError: a key is missing, or the decoder uses a feature that is not supported.
        """
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise CheckpointError(f"rope_type {kind!r} is not supported; supported: default")
        if (activation := text.get("hidden_act", "silu")) != "silu":
            raise CheckpointError(f"text_config.hidden_act {activation!r} is not supported; supported: silu")
        for key in ("attention_bias", "mlp_bias", "sliding_window"):
            if text.get(key):
                raise CheckpointError(f"text_config.{key} is not supported; expected it to be off")
        try:
            heads = int(text["num_attention_heads"])
            return cls(
                hidden_size=int(text["hidden_size"]),
                intermediate_size=int(text["intermediate_size"]),
                num_hidden_layers=int(text["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(text.get("num_key_value_heads") or heads),
                head_dim=int(text.get("head_dim") or int(text["hidden_size"]) // heads),
                vocab_size=int(text["vocab_size"]),
                rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
                rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 10000.0))),
                max_position_embeddings=int(text.get("max_position_embeddings", 2048)),
                tie_word_embeddings=tie_word_embeddings,
            )
        except KeyError as error:
            raise CheckpointError(f"config.json: text_config has no key {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Where the decoder's tensors are in the checkpoint; `layer` holds {i} for the layer's index."""

    embed_tokens: str
    norm: str
    lm_head: str
    layer: str


class ModelSpec(ABC):
    """What the exporter and the runtime must know of a family; one subclass per model_type.

    `renames` turn the beginnings of tensor names, as older checkpoints have them, into those that `weights` and
    the family's vision encoder use. `chat_template` stands in for a checkpoint without one.
    """

    model_type: str
    text: TextConfig
    weights: WeightNames
    image_token_id: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    renames: tuple[tuple[str, str], ...] = ()
    chat_template: str | None = None
    # Where the vision encoder reads the request's words: their tokenizer's file in the checkpoint folder.
    words_tokenizer: str | None = None

    @abstractmethod
    def layout(self, width: int, height: int) -> Layout:
        """The views of a picture of this size.

        Raises:
            PictureError: the family has no layout for such a picture.
        """

    @property
    @abstractmethod
    def reference_layout(self) -> Layout:
        """The layout of the picture that stands for none, and of those that an export is tested with."""

    @property
    @abstractmethod
    def image_placeholder(self) -> str:
        """The text that the chat template writes where a picture goes."""

    @abstractmethod
    def image_text(self, layout: Layout) -> str:
        """The text that replaces the placeholder: `layout.tokens` image tokens with their markers."""

    @abstractmethod
    def vision_graph(self, dtype: str) -> GraphSpec:
        """The vision encoder's inputs and outputs; every input's first axis is P."""

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
        """Inputs of the decoder beyond those of every family: (C, T, ...) for each token, (C, ...) for each row."""
        return ()

    def positions(self, token_ids: NDArray[np.int64], layouts: Sequence[Layout]) -> NDArray[np.int64]:
        """Rotary positions (axes, n + 1) of a prompt; the last is that of the first token behind it."""
        return np.arange(len(token_ids) + 1, dtype=np.int64)[None]

    def token_inputs(self, token_ids: NDArray[np.int64], features: Features) -> Mapping[str, Array]:
        """The decoder's own inputs for each token of a prompt, each (n + 1, ...): the last for all behind it."""
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


def known_model_types() -> tuple[str, ...]:
    """The families that have a file in this folder."""
    import safecode_trt.models as package

    files = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(set(files) - {"layout", "spec", "text"}))


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
