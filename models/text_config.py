"""The text decoder under a vision-language model: its settings in config.json's words, its tensors' names.

One table says what transformers knows of each text model_type. Knows nothing of pictures, graphs or backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safecode_trt.errors import CheckpointError
from safecode_trt.models.rope_config import RopeConfig

__all__ = ["TextConfig", "WeightNames"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextType:
    """What a text model_type always has, and what it assumes where config.json is silent.

    Keys that are not in `defaults` are not read, as transformers does not.
    """

    defaults: Mapping[str, Any]
    rope: Mapping[str, Any]
    qkv_bias: bool = False  # q, k and v have biases, whatever config.json says, and o has none
    qk_norm: bool = False


LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
MISTRAL = LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
QWEN = LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
QWEN_VL = QWEN | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}
WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
ROPE = {"rope_theta": 10000.0}
CHUNKED = {"rope_theta": 1000000.0, "mrope_section": (16, 24, 24)}
INTERLEAVED = {"rope_theta": 500000.0, "mrope_section": (24, 20, 20), "mrope_interleaved": True}

QWEN2_VL = TextType(defaults=QWEN_VL | WINDOW | {"max_window_layers": 80}, rope=CHUNKED, qkv_bias=True)
TEXT_TYPES = {
    "llama": TextType(defaults=LLAMA | {"attention_bias": False, "mlp_bias": False}, rope=ROPE),
    "mistral": TextType(defaults=MISTRAL, rope=ROPE),
    "qwen2": TextType(defaults=QWEN | WINDOW, rope=ROPE, qkv_bias=True),
    "qwen2_vl_text": QWEN2_VL,
    "qwen2_5_vl_text": QWEN2_VL,
    "qwen3": TextType(
        defaults=QWEN | WINDOW | {"head_dim": 128, "attention_bias": False}, rope=ROPE, qk_norm=True
    ),
    "qwen3_vl_text": TextType(
        defaults=QWEN | {"head_dim": 128, "attention_bias": False, "max_position_embeddings": 128000},
        rope=INTERLEAVED,
        qk_norm=True,
    ),
}
# What the whole model is called in files that do not keep the decoder's keys apart.
FLAT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text"}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text decoder in config.json's own words, and what its model_type adds to the plain Llama.

    `sliding_window` is how many positions some layer looks back at, itself included; None where all layers
    look at everything.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None

    @classmethod
    def from_config(
        cls, text: Mapping[str, Any], *, tie_word_embeddings: bool, model_type: str = "llama"
    ) -> TextConfig:
        """Reads a `text_config`, or a whole config.json that keeps the decoder's keys at its top.

        `model_type` is the decoder's where `text` does not name it.

        Raises:
            CheckpointError: a value is unusable, or the decoder has a feature that is not supported.
        """
        name = text.get("model_type") or model_type
        kind = TEXT_TYPES.get(FLAT.get(name, name))
        if kind is None:
            known = ", ".join(TEXT_TYPES)
            raise CheckpointError(f"text model_type {name!r} is not supported; known: {known}")
        settings = {key: text.get(key, default) for key, default in kind.defaults.items()}
        _refuse_other_layers(text, settings)
        hidden, heads = _integer(settings, "hidden_size"), _integer(settings, "num_attention_heads")
        layers, longest = (
            _integer(settings, key) for key in ("num_hidden_layers", "max_position_embeddings")
        )
        kv_heads = _integer(settings, "num_key_value_heads", heads)
        head_dim = _integer(settings, "head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise CheckpointError(
                f"text_config: {heads} heads of {head_dim} and {kv_heads} key-value heads; expected an even "
                "head_dim, and a num_key_value_heads that divides num_attention_heads"
            )
        rope = RopeConfig.from_config(text, max_position_embeddings=longest, assumed=kind.rope)
        if rope.mrope_section and (len(rope.mrope_section) != 3 or 2 * sum(rope.mrope_section) != head_dim):
            raise CheckpointError(
                f"text_config: mrope_section {list(rope.mrope_section)} must be three numbers with the sum "
                f"{head_dim // 2}, half of head_dim"
            )
        attention_bias = bool(settings.get("attention_bias"))
        return cls(
            hidden_size=hidden,
            intermediate_size=_integer(settings, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_integer(settings, "vocab_size"),
            rms_norm_eps=_number(settings, "rms_norm_eps"),
            max_position_embeddings=longest,
            tie_word_embeddings=tie_word_embeddings,
            rope=rope,
            qkv_bias=kind.qkv_bias or attention_bias,
            o_bias=attention_bias,
            mlp_bias=bool(settings.get("mlp_bias")),
            qk_norm=kind.qk_norm,
            sliding_window=_window(settings, layers),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Where the decoder's tensors are in the checkpoint; `layer` holds {i} for the layer's index."""

    embed_tokens: str
    norm: str
    lm_head: str
    layer: str


def _refuse_other_layers(text: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Layers that are not the Llama's: another activation, experts, attention that is not softmax."""
    if settings["hidden_act"] != "silu":
        raise CheckpointError(
            f"text_config.hidden_act {settings['hidden_act']!r} is not supported; supported: silu"
        )
    for key in EXPERTS:
        if text.get(key):
            raise CheckpointError(
                f"text_config.{key} is {text[key]!r}; mixtures of experts are not supported"
            )
    if other := sorted(set(text.get("layer_types") or ()) - LAYER_TYPES):
        raise CheckpointError(
            f"text_config.layer_types has {other[0]!r}; supported: {', '.join(sorted(LAYER_TYPES))}"
        )


def _window(settings: Mapping[str, Any], layers: int) -> int | None:
    """The window, if any layer has one: by layer_types, or all from max_window_layers on."""
    if not settings.get("sliding_window") or not settings.get("use_sliding_window", True):
        return None
    types = settings.get("layer_types")
    slides = "sliding_attention" in types if types else (settings.get("max_window_layers") or 0) < layers
    return _integer(settings, "sliding_window") if slides else None


def _integer(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = settings[key]
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"text_config.{key} must be a positive integer, got {value!r}")
    return value


def _number(settings: Mapping[str, Any], key: str) -> float:
    value = settings[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise CheckpointError(f"text_config.{key} must be a number from 0 on, got {value!r}")
    return float(value)
