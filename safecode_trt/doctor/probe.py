"""A decoder of one layer that a backend must really execute, and what it computes in numpy.

The graphs are made by `export/probe_graphs.py` and lie in `probes/`, in both attention forms and both types: norms,
rotary embedding, a write into a cache, attention over it under a mask, and a gated MLP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import AttentionForm, Geometry

__all__ = [
    "DTYPES",
    "EPSILON",
    "FOLDER",
    "GEOMETRY",
    "SHAPE_NODES",
    "TOLERANCE",
    "Dtype",
    "expected",
    "feeds",
    "graph_path",
    "shape_nodes",
    "weights",
]

Dtype = Literal["float32", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Array = NDArray[Any]
TOLERANCE: Mapping[Dtype, float] = {"float32": 1e-4, "float16": 2e-2}
"""The largest difference from numpy that is no mistake; values are around 1."""

E, HQ, H, D, F, CAP, PLACE = 32, 2, 1, 16, 48, 8, 5
GEOMETRY = Geometry(
    num_hidden_layers=1,
    num_attention_heads=HQ,
    num_key_value_heads=H,
    head_dim=D,
    hidden_size=E,
    vocab_size=E,
    context_length=CAP,
    image_seq_len=1,
)
EPSILON = 1e-5
FOLDER = Path(__file__).with_name("probes")
SHAPE_NODES = FOLDER / "shape_nodes.json"


def graph_path(form: AttentionForm, dtype: Dtype = "float32") -> Path:
    """The ONNX file of the decoder, which holds its weights."""
    return FOLDER / f"{form}-{dtype}.onnx"


def shape_nodes(form: AttentionForm, dtype: Dtype = "float32") -> tuple[str, ...]:
    """The names of the graph's nodes that only compute shapes."""
    return tuple(json.loads(SHAPE_NODES.read_bytes())[graph_path(form, dtype).name])


def feeds(dtype: Dtype = "float32") -> dict[str, Array]:
    """One row and one token after five that are in the cache; keys and values after those are masked."""
    angles = 1.5 + 1.5 * _numbers((1, 1, D // 2), 1)
    floats = {
        "inputs_embeds": _numbers((1, 1, E), 2),
        "rope_cos": np.cos(angles),
        "rope_sin": np.sin(angles),
        "attention_bias": np.where(np.arange(CAP) <= PLACE, 0.0, -30000.0).reshape(1, 1, 1, CAP),
        "past_key_values.0.key": _numbers((1, H, CAP, D), 3),
        "past_key_values.0.value": _numbers((1, H, CAP, D), 4),
    }
    return {name: x.astype(dtype) for name, x in floats.items()} | {"write_indices": np.array([PLACE])}


def expected(dtype: Dtype = "float32") -> dict[str, NDArray[np.float32]]:
    """The decoder's outputs: what goes on to the next layer, and the cache with the new key and value."""
    x = {name: value.astype(np.float32) for name, value in feeds(dtype).items()}
    w = {name: value.astype(np.float32) for name, value in weights(dtype).items()}
    normed = _norm(x["inputs_embeds"], w["input_norm"])
    heads = (normed @ w["qkv_proj"]).reshape(1, 1, HQ + 2 * H, D).transpose(0, 2, 1, 3)
    query, key, value = np.split(heads, [HQ, HQ + H], axis=1)
    keys, values = (x[f"past_key_values.0.{part}"].copy() for part in ("key", "value"))
    keys[:, :, PLACE] = _rotated(key, x)[:, :, 0]
    values[:, :, PLACE] = value[:, :, 0]
    scores = _rotated(query, x) @ keys.swapaxes(2, 3) / np.sqrt(D) + x["attention_bias"]
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ values
    hidden = x["inputs_embeds"] + mixed.transpose(0, 2, 1, 3).reshape(1, 1, HQ * D) @ w["o_proj"]
    normed = _norm(hidden, w["post_attention_norm"])
    gate = normed @ w["gate_proj"]
    hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ w["up_proj"])) @ w["down_proj"]
    return {"hidden": hidden, "present.0.key": keys, "present.0.value": values}


def weights(dtype: Dtype = "float32") -> dict[str, Array]:
    """The decoder's weights by name, matrices as (inputs, outputs)."""
    shapes = {
        "qkv_proj": (E, (HQ + 2 * H) * D),
        "o_proj": (HQ * D, E),
        "gate_proj": (E, F),
        "up_proj": (E, F),
        "down_proj": (F, E),
    }
    matrices = {
        name: _numbers(shape, seed) * shape[0] ** -0.5 for seed, (name, shape) in enumerate(shapes.items(), 5)
    }
    norms = {
        name: 1 + _numbers((E,), seed) / 3 for seed, name in ((10, "input_norm"), (11, "post_attention_norm"))
    }
    return {name: x.astype(dtype) for name, x in {**matrices, **norms}.items()}


def _numbers(shape: tuple[int, ...], seed: int) -> Array:
    """Numbers with a mean square of 1. By a formula, because numpy's generators may change with its version."""
    n = np.arange(np.prod(shape), dtype=np.float64)
    return np.asarray(np.sqrt(2) * np.sin(0.61803 * n * n + seed * n + seed)).reshape(shape)


def _norm(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight)


def _rotated(x: Array, inputs: Mapping[str, Array]) -> Array:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = inputs["rope_cos"][:, None], inputs["rope_sin"][:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
