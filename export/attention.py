"""The two forms of a decoder layer's inner operations: with the operators of opset 24, and without them.

Both have the same methods and the same numbers. `PortableForm` is for ONNX Runtime and TensorRT from 10.15 on;
`DecomposedForm` uses only what TensorRT 10.3 (JetPack 6) and old runtimes know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import onnx_ir as ir

from safecode_trt.contract import AttentionForm, Geometry
from safecode_trt.export.graph import DTYPES, NodeBuilder

__all__ = ["DecomposedForm", "LayerForm", "PortableForm", "layer_form"]


class LayerForm(ABC):
    """What a decoder layer does in addition to multiplying by weights. Heads are axis 1: (C, heads, T, D)."""

    opset: int

    @abstractmethod
    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float, path: str) -> ir.Value:
        """x over the root of its mean square, times the weight; computed in float32."""

    @abstractmethod
    def rotate(self, x: ir.Value, path: str) -> ir.Value:
        """Rotary position embedding of (C, heads, T, D), the two halves of D being the pairs."""

    @abstractmethod
    def write(self, past: ir.Value, update: ir.Value, path: str, *, output: str) -> ir.Value:
        """The cache (C, H, CAP, D) with the new positions written at each row's write index."""

    @abstractmethod
    def attend(self, query: ir.Value, key: ir.Value, value: ir.Value, path: str) -> ir.Value:
        """Attention (C, Hq, T, D) of the queries to the whole cache (C, H, CAP, D), under the mask."""

    @abstractmethod
    def cross_attend(
        self, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value, path: str
    ) -> ir.Value:
        """Attention (C, H, T, D) of the queries to keys (C, H, S, D) under an additive bias (C, 1, T, S)."""


def layer_form(form: AttentionForm, builder: NodeBuilder, geometry: Geometry, dtype: str) -> LayerForm:
    """The form of that name, ready to be used on the builder's graph."""
    if form == "portable":
        return PortableForm(builder)
    return DecomposedForm(builder, geometry, dtype)


class PortableForm(LayerForm):
    """Opset 24: RMSNormalization, RotaryEmbedding, TensorScatter, Attention."""

    opset = 24

    def __init__(self, builder: NodeBuilder) -> None:
        self._builder = builder

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float, path: str) -> ir.Value:
        return self._builder.op("RMSNormalization", [x, weight], path, axis=-1, epsilon=epsilon)

    def rotate(self, x: ir.Value, path: str) -> ir.Value:
        inputs = self._builder.inputs
        return self._builder.op("RotaryEmbedding", [x, inputs["rope_cos"], inputs["rope_sin"]], path)

    def write(self, past: ir.Value, update: ir.Value, path: str, *, output: str) -> ir.Value:
        indices = self._builder.inputs["write_indices"]
        return self._builder.op("TensorScatter", [past, update, indices], path, output=output, axis=2)

    def attend(self, query: ir.Value, key: ir.Value, value: ir.Value, path: str) -> ir.Value:
        b = self._builder
        # One output and an explicit mask: TensorRT takes no more, and reads `is_causal` differently.
        return b.op("Attention", [query, key, value, b.inputs["attention_bias"]], path)

    def cross_attend(
        self, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value, path: str
    ) -> ir.Value:
        return self._builder.op("Attention", [query, key, value, bias], path)


class DecomposedForm(LayerForm):
    """Opset 20 (21 where weights are quantised): MatMul, Softmax, ScatterElements and arithmetic."""

    opset = 20

    def __init__(self, builder: NodeBuilder, geometry: Geometry, dtype: str) -> None:
        b = self._builder = builder
        self._geometry, self._dtype = geometry, DTYPES[dtype].numpy()
        self._cos, self._sin = (
            b.op("Unsqueeze", [b.inputs[name], b.constant("/axes/1", [1])], f"/{name}")
            for name in ("rope_cos", "rope_sin")
        )
        self._places = self._scatter_places()
        shape = b.op("Shape", [b.inputs["attention_bias"]], "/mask_shape", start=2, end=4)  # T, CAP
        capacity = b.op("Shape", [b.inputs["attention_bias"]], "/capacity", start=3, end=4)
        heads = b.constant("/shape/0,Hq", [0, geometry.num_attention_heads])
        key_heads = b.constant("/shape/0,H,-1", [0, geometry.num_key_value_heads, -1])
        self._by_head = b.op("Concat", [heads, shape], "/by_head", axis=0)  # 0, Hq, T, CAP
        self._by_key_head = b.op("Concat", [key_heads, capacity], "/by_key_head", axis=0)  # 0, H, -1, CAP

    def _scatter_places(self) -> ir.Value:
        """Where each new key goes: write_indices[c] + t, spread to (C, H, T, D). The same for all layers."""
        b, g = self._builder, self._geometry
        new = b.op("Shape", [b.inputs["inputs_embeds"]], "/new", start=1, end=2)
        count = b.op("Squeeze", [new, b.constant("/axes/0", [0])], "/new")
        zero, one = b.constant("/zero", np.array(0, np.int64)), b.constant("/one", np.array(1, np.int64))
        steps = b.op("Range", [zero, count, one], "/new")
        steps = b.op("Unsqueeze", [steps, b.constant("/axes/1", [1])], "/new/steps")  # (T, 1)
        axes = b.constant("/axes/1,2,3", [1, 2, 3])
        starts = b.op("Unsqueeze", [b.inputs["write_indices"], axes], "/write_indices")  # (C, 1, 1, 1)
        places = b.op("Add", [starts, steps], "/places")  # (C, 1, T, 1)
        ones = b.constant("/shape/1,H,1,D", [1, g.num_key_value_heads, 1, g.head_dim])
        return b.op("Expand", [places, ones], "/places")

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float, path: str) -> ir.Value:
        b, half = self._builder, self._dtype != np.float32
        wide = b.op("Cast", [x], f"{path}/wide", to=ir.DataType.FLOAT) if half else x
        square = b.op("Mul", [wide, wide], f"{path}/square")
        mean = b.op("ReduceMean", [square, b.constant("/axes/-1", [-1])], path, keepdims=1)
        mean = b.op("Add", [mean, b.constant("/epsilon", np.array([epsilon], np.float32))], f"{path}/epsilon")
        normed = b.op("Div", [wide, b.op("Sqrt", [mean], path)], path)
        if half:
            normed = b.op("Cast", [normed], f"{path}/narrow", to=ir.DataType.from_numpy(self._dtype))
        return b.op("Mul", [normed, weight], f"{path}/weight")

    def rotate(self, x: ir.Value, path: str) -> ir.Value:
        b = self._builder
        first, second = b.split("Split", [x], path, 2, axis=-1, num_outputs=2)

        def times(half: ir.Value, table: ir.Value, name: str) -> ir.Value:
            return b.op("Mul", [half, table], f"{path}/{name}")

        left = b.op(
            "Sub", [times(first, self._cos, "first_cos"), times(second, self._sin, "second_sin")], path
        )
        right = b.op(
            "Add", [times(second, self._cos, "second_cos"), times(first, self._sin, "first_sin")], path
        )
        return b.op("Concat", [left, right], path, axis=-1)

    def write(self, past: ir.Value, update: ir.Value, path: str, *, output: str) -> ir.Value:
        return self._builder.op("ScatterElements", [past, self._places, update], path, output=output, axis=2)

    def attend(self, query: ir.Value, key: ir.Value, value: ir.Value, path: str) -> ir.Value:
        b, g = self._builder, self._geometry
        query = self._scaled(query, path)
        # The queries that share a key head become more rows of one product: (C, H, Hq / H * T, D).
        by_key_head = b.constant("/shape/0,H,-1,D", [0, g.num_key_value_heads, -1, g.head_dim])
        query = b.op("Reshape", [query, by_key_head], f"{path}/by_key_head")
        key = b.op("Transpose", [key], f"{path}/key", perm=[0, 1, 3, 2])
        scores = b.op("MatMul", [query, key], f"{path}/scores")
        scores = b.op("Reshape", [scores, self._by_head], f"{path}/by_head")  # (C, Hq, T, CAP)
        scores = b.op("Add", [scores, b.inputs["attention_bias"]], f"{path}/bias")
        weights = b.op("Softmax", [scores], path, axis=-1)
        weights = b.op("Reshape", [weights, self._by_key_head], f"{path}/weights")
        mixed = b.op("MatMul", [weights, value], f"{path}/mix")
        heads = b.constant("/shape/0,Hq,-1,D", [0, g.num_attention_heads, -1, g.head_dim])
        return b.op("Reshape", [mixed, heads], f"{path}/mix")

    def cross_attend(
        self, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value, path: str
    ) -> ir.Value:
        b, query = self._builder, self._scaled(query, path)
        key = b.op("Transpose", [key], f"{path}/key_columns", perm=[0, 1, 3, 2])
        scores = b.op("MatMul", [query, key], f"{path}/scores")
        scores = b.op("Add", [scores, bias], f"{path}/bias")
        weights = b.op("Softmax", [scores], path, axis=-1)
        return b.op("MatMul", [weights, value], f"{path}/mix")

    def _scaled(self, query: ir.Value, path: str) -> ir.Value:
        scale = self._builder.constant("/scale", np.array([self._geometry.head_dim**-0.5], self._dtype))
        return self._builder.op("Mul", [query, scale], f"{path}/scale")
