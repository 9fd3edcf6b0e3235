"""Idefics, the architecture of idefics-9b: a Llama whose layers look at the pictures through cross attention.

A picture is one square. Its image token marks only where it stands in the text: the keys and values of its
latents are inputs of the decoder in addition to the tokens, and every token looks at the last picture before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import MASKED, GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout, View
from safecode_trt.models.pixels import pixel_fields
from safecode_trt.models.spec import (
    Array,
    CrossAttention,
    Features,
    Floats,
    ModelSpec,
    added_tokens,
    read_preprocessor,
)
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["IdeficsSpec", "load"]

IMAGE, FAKE, END = "<image>", "<fake_token_around_image>", "<end_of_utterance>"
# The dialogues that the instruct models were trained on. Neighbouring pictures share the marker between them.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '' if loop.first else '\\n' }}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    f"{{{{ '' if loop.previtem and loop.previtem['type'] == 'image' else '{FAKE}' }}}}{IMAGE}{FAKE}"
    "{% else %}{{ ' ' if loop.first else '' }}{{ part['text'] }}{% endif %}{% endfor %}"
    f"{END}{{% endfor %}}"
    "{{ '\\nAssistant:' if add_generation_prompt else '' }}"
)
EMBED, HEAD = "model.embed_tokens", "lm_head"
JOINS = (
    ("embed_tokens", (f"{EMBED}.weight", f"{EMBED}.additional_embedding.weight")),
    ("lm_head", (f"{HEAD}.weight", f"{HEAD}.additional_fc.weight")),
)


def load(folder: Path, config: Mapping[str, Any]) -> IdeficsSpec:
    """Reads config.json, the image processor's settings and the added tokens of a checkpoint or bundle."""
    preprocessor, tokens = read_preprocessor(folder), added_tokens(folder)
    vision, perceiver = config.get("vision_config") or {}, config.get("perceiver_config") or {}
    if IMAGE not in tokens or FAKE not in tokens:
        raise CheckpointError(f"{folder}: tokenizer.json has no added tokens {IMAGE} and {FAKE}")
    text = TextConfig.from_config(
        {**config, "model_type": "llama", "num_key_value_heads": None, "head_dim": None},
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    image_size, size = int(vision.get("image_size", 224)), preprocessor.get("size") or {}
    resized = preprocessor.get("image_size") or size.get("height", 224)
    if resized != image_size:
        raise CheckpointError(
            f"{folder}: pictures are resized to {resized} by the image processor, but vision_config.image_size "
            f"is {image_size}; expected them to be equal"
        )
    interval = int(config.get("cross_layer_interval", 1))
    if interval < 1 or text.num_hidden_layers % interval:
        raise CheckpointError(
            f"config.json: cross_layer_interval {interval} does not divide the {text.num_hidden_layers} layers"
        )
    ends = config.get("eos_token_id", 2)
    extra, vector = int(config.get("additional_vocab_size", 0)), config.get("alpha_type", "float") == "vector"
    names = tuple(name for name, _ in JOINS) if extra else (f"{EMBED}.weight", f"{HEAD}.weight")
    latents = perceiver.get("resampler_n_latents", 64)
    patches = (image_size // int(vision.get("patch_size", 14))) ** 2
    return IdeficsSpec(
        text=replace(text, vocab_size=text.vocab_size + extra),
        weights=WeightNames(
            embed_tokens=names[0], norm="model.norm.weight", lm_head=names[1], layer="model.layers.{i}."
        ),
        joins=JOINS if extra else (),
        cross_attention=CrossAttention(
            interval=interval,
            layer="model.gated_cross_attn_layers.{j}.",
            gate_shape=(1, 1, text.hidden_size) if vector else (1,),
            qk_norm=bool(config.get("qk_layer_norms", False)),
        ),
        latents=int(latents) if config.get("use_resampler", False) else patches + 1,
        image_token_id=tokens[IMAGE],
        document_end_id=int(ends[0] if isinstance(ends, list) else ends),
        end_token_ids=(tokens[END],) if END in tokens else (),
        chat_template=CHAT_TEMPLATE if END in tokens else CHAT_TEMPLATE.replace(END, ""),
        image_size=image_size,
        **pixel_fields(preprocessor),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdeficsSpec(ModelSpec):
    """The spec of one Idefics checkpoint; `latents` is how many keys a picture has in each cross layer.

    What follows a `document_end_id` belongs to another document, and sees no picture before the next one.
    """

    text: TextConfig
    weights: WeightNames
    joins: tuple[tuple[str, tuple[str, ...]], ...]
    cross_attention: CrossAttention
    latents: int
    image_token_id: int
    document_end_id: int
    end_token_ids: tuple[int, ...]
    chat_template: str
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    model_type: str = "idefics"

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    @property
    def reference_layout(self) -> Layout:
        return self.layout(self.image_size, self.image_size)

    def layout(self, width: int, height: int) -> Layout:
        return Layout(views=(View(resizes=((self.image_size, self.image_size),)),), tokens=1)

    def image_text(self, layout: Layout) -> str:
        return IMAGE

    def vision_graph(self, dtype: str) -> GraphSpec:
        side = self.image_size
        return GraphSpec(
            inputs=(TensorSpec(name="pixel_values", dtype=dtype, shape=("P", 3, side, side)),),
            outputs=self._keys_and_values("P", self.latents, dtype),
        )

    def features(self, outputs: Mapping[str, Floats], layout: Layout) -> Features:
        return {name: x[0] for name, x in outputs.items()}

    def reference_features(self, features: Features, layout: Layout) -> Features:
        return features

    def decoder_inputs(self, dtype: str) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name="cross_attention_bias", dtype=dtype, shape=("C", "T", "S")),
            TensorSpec(name="cross_attention_gate", dtype=dtype, shape=("C", "T", 1)),
            *self._keys_and_values("C", "S", dtype),
        )

    def _keys_and_values(self, rows: str, positions: int | str, dtype: str) -> tuple[TensorSpec, ...]:
        text = self.text
        shape = (rows, positions, text.num_attention_heads, text.head_dim)
        layers = range(text.num_hidden_layers // self.cross_attention.interval)
        names = [f"cross_{part}.{j}" for j in layers for part in ("key", "value")]
        return tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name in names)

    def token_inputs(self, token_ids: NDArray[np.int64], features: Features) -> Mapping[str, Array]:
        positions = len(next(iter(features.values()))) if features else 1
        # The answer goes on as the prompt ended; an image token that the model itself has written shows no picture.
        picture = self._last_pictures(token_ids)
        picture = np.append(picture, picture[-1]).clip(max=max(positions // self.latents, 1) - 1)[:, None]
        other = np.arange(positions) // self.latents != picture
        # A token that sees no picture is masked by the gate: a row of nothing but masks has no softmax.
        return {
            "cross_attention_bias": np.where(other & (picture >= 0), MASKED, 0).astype(np.float32),
            "cross_attention_gate": (picture >= 0).astype(np.float32),
        }

    def _last_pictures(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which picture each token (n,) sees: the last up to it in its document, -1 for none."""
        places = np.arange(len(token_ids))
        image, end = token_ids == self.image_token_id, token_ids == self.document_end_id
        last_image, last_end = (np.maximum.accumulate(np.where(x, places, -1)) for x in (image, end))
        ended = np.concatenate([[-1], last_end[:-1]]) > last_image
        return np.where(ended, -1, np.cumsum(image) - 1)

    def row_inputs(self, features: Features) -> Mapping[str, Array]:
        if features:
            return features
        heads = (1, self.text.num_attention_heads, self.text.head_dim)
        tensors = self._keys_and_values("C", "S", "float32")
        return {tensor.name: np.zeros(heads, np.float32) for tensor in tensors}
