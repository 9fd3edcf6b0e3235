"""A decoder of one layer that a backend must really execute, and what it computes in numpy.

It has what bundles have: norms, rotary embedding, a write into a cache, attention over it under a mask, a gated MLP;
in both forms of bundles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import AttentionForm
from safecode_trt.doctor.onnx_writer import TYPES, GraphWriter

__all__ = ["TOLERANCE", "Dtype", "expected", "feeds", "graph_bytes"]

Dtype = Literal["float32", "float16"]
Array = NDArray[Any]
TOLERANCE: Mapping[Dtype, float] = {"float32": 1e-4, "float16": 2e-2}
"""The largest difference from numpy that is no mistake; values are around 1."""

OPSET: Mapping[AttentionForm, int] = {"portable": 24, "decomposed": 18}
E, HQ, H, D, F, CAP, PLACE = 32, 2, 1, 16, 48, 8, 5
EPSILON = 1e-5


def feeds(dtype: Dtype = "float32") -> dict[str, Array]:
    """One row and one token behind five that are in the cache; keys and values behind those are masked."""
    draw = np.random.default_rng(1)
    angles = draw.uniform(0, 3, (1, 1, D // 2))
    floats = {
        "hidden": draw.standard_normal((1, 1, E)),
        "rope_cos": np.cos(angles),
        "rope_sin": np.sin(angles),
        "mask": np.where(np.arange(CAP) <= PLACE, 0.0, -30000.0).reshape(1, 1, 1, CAP),
        "past_key": draw.standard_normal((1, H, CAP, D)),
        "past_value": draw.standard_normal((1, H, CAP, D)),
    }
    return {name: x.astype(dtype) for name, x in floats.items()} | {"write_indices": np.array([PLACE])}


def expected(dtype: Dtype = "float32") -> dict[str, NDArray[np.float32]]:
    """The decoder's outputs: what goes on to the next layer, and the cache with the new key and value."""
    x = {name: value.astype(np.float32) for name, value in feeds(dtype).items()}
    w = {name: value.astype(np.float32) for name, value in _weights(dtype).items()}
    heads = (_norm(x["hidden"], w["norm"]) @ w["qkv"]).reshape(1, 1, HQ + 2 * H, D).transpose(0, 2, 1, 3)
    query, key, value = np.split(heads, [HQ, HQ + H], axis=1)
    cache = {"present_key": x["past_key"].copy(), "present_value": x["past_value"].copy()}
    cache["present_key"][:, :, PLACE] = _rotated(key, x)[:, :, 0]
    cache["present_value"][:, :, PLACE] = value[:, :, 0]
    scores = _rotated(query, x) @ cache["present_key"].swapaxes(2, 3) / np.sqrt(D) + x["mask"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ cache["present_value"]
    hidden = x["hidden"] + mixed.transpose(0, 2, 1, 3).reshape(1, 1, HQ * D) @ w["out"]
    normed = _norm(hidden, w["norm"])
    gate = normed @ w["gate"]
    hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ w["up"])) @ w["down"]
    return {"next_hidden": hidden, **cache}


def _norm(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight)


def _rotated(x: Array, inputs: Mapping[str, Array]) -> Array:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = inputs["rope_cos"][:, None], inputs["rope_sin"][:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _weights(dtype: Dtype) -> dict[str, Array]:
    draw = np.random.default_rng(2)
    shapes = {
        "qkv": (E, (HQ + 2 * H) * D),
        "out": (HQ * D, E),
        "gate": (E, F),
        "up": (E, F),
        "down": (F, E),
    }
    made = {name: draw.standard_normal(shape) * shape[0] ** -0.5 for name, shape in shapes.items()}
    return {name: x.astype(dtype) for name, x in (made | {"norm": draw.uniform(0.5, 1.5, E)}).items()}


def graph_bytes(form: AttentionForm, dtype: Dtype = "float32") -> bytes:
    """The decoder as a serialised ONNX model."""
    graph = GraphWriter(dict(_weights(dtype)))
    graph.constant("heads", [1, 1, HQ + 2 * H, D])
    graph.constant("parts", [HQ, H, H])
    graph.constant("merged", [1, 1, HQ * D])
    layer = _Portable(graph) if form == "portable" else _Decomposed(graph, dtype)
    op = graph.op
    qkv = op("MatMul", [layer.norm("hidden", "first_norm"), "qkv"])
    qkv = op("Transpose", [op("Reshape", [qkv, "heads"])], perm=[0, 2, 1, 3])
    graph.node("Split", [qkv, "parts"], ["query", "key", "value"], axis=1)
    layer.write("past_key", layer.rotate("key"), "present_key")
    layer.write("past_value", "value", "present_value")
    mixed = op("Transpose", [layer.attend(layer.rotate("query"))], perm=[0, 2, 1, 3])
    attended = op("Add", ["hidden", op("MatMul", [op("Reshape", [mixed, "merged"]), "out"])])
    normed = layer.norm(attended, "second_norm")
    gate = op("MatMul", [normed, "gate"])
    gated = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), op("MatMul", [normed, "up"])])
    graph.node("Add", [attended, op("MatMul", [gated, "down"])], ["next_hidden"])
    return graph.model(
        OPSET[form], feeds(dtype), {name: (dtype, x.shape) for name, x in expected(dtype).items()}
    )


class _Portable:
    """The layer's inner operations with the operators of opset 24."""

    def __init__(self, graph: GraphWriter) -> None:
        self._op, self._node = graph.op, graph.node

    def norm(self, x: str, name: str) -> str:
        return self._op("RMSNormalization", [x, "norm"], axis=-1, epsilon=EPSILON)

    def rotate(self, x: str) -> str:
        return self._op("RotaryEmbedding", [x, "rope_cos", "rope_sin"])

    def write(self, past: str, update: str, present: str) -> None:
        self._node("TensorScatter", [past, update, "write_indices"], [present], axis=2)

    def attend(self, query: str) -> str:
        return self._op("Attention", [query, "present_key", "present_value", "mask"])


class _Decomposed:
    """The same with MatMul, Softmax, ScatterElements and arithmetic."""

    def __init__(self, graph: GraphWriter, dtype: Dtype) -> None:
        self._op, self._node = graph.op, graph.node
        graph.weights["epsilon"] = np.array([EPSILON], np.float32)
        graph.weights["scale"] = np.array([D**-0.5], dtype)
        graph.constant("last_axis", [-1])
        graph.constant("first_axis", [1])
        graph.constant("place_shape", [1, H, 1, D])
        self._half = dtype == "float16"
        self._cos, self._sin = (self._op("Unsqueeze", [x, "first_axis"]) for x in ("rope_cos", "rope_sin"))
        self._places = self._op("Expand", ["write_indices", "place_shape"])

    def norm(self, x: str, name: str) -> str:
        op = self._op
        wide = op("Cast", [x], to=TYPES["float32"]) if self._half else x
        mean = op("ReduceMean", [op("Mul", [wide, wide]), "last_axis"], keepdims=1)
        normed = op("Div", [wide, op("Sqrt", [op("Add", [mean, "epsilon"])])])
        return op("Mul", [op("Cast", [normed], to=TYPES["float16"]) if self._half else normed, "norm"])

    def rotate(self, x: str) -> str:
        op, halves = self._op, [f"{x}_first", f"{x}_second"]
        self._node("Split", [x], halves, axis=-1, num_outputs=2)
        (a, b), cos, sin = halves, self._cos, self._sin
        left = op("Sub", [op("Mul", [a, cos]), op("Mul", [b, sin])])
        right = op("Add", [op("Mul", [b, cos]), op("Mul", [a, sin])])
        return op("Concat", [left, right], axis=-1)

    def write(self, past: str, update: str, present: str) -> None:
        self._node("ScatterElements", [past, self._places, update], [present], axis=2)

    def attend(self, query: str) -> str:
        op = self._op
        columns = op("Transpose", ["present_key"], perm=[0, 1, 3, 2])
        scores = op("Add", [op("MatMul", [op("Mul", [query, "scale"]), columns]), "mask"])
        return op("MatMul", [op("Softmax", [scores], axis=-1), "present_value"])
