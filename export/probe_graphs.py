"""The decoder of one layer that `doctor` executes, made of the forms that bundles have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt.contract import AttentionForm, Geometry, TensorSpec
from safecode_trt.export.attention import layer_form
from safecode_trt.export.graph import DTYPES, NodeBuilder

__all__ = ["probe_graph"]

IR_VERSION = 10
LAYER = "/model/layers.0"


def probe_graph(
    form: AttentionForm,
    dtype: str,
    geometry: Geometry,
    weights: Mapping[str, NDArray[Any]],
    *,
    epsilon: float,
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, tuple[int, ...]],
) -> ir.Model:
    """The decoder with its weights inside, in shapes without a free axis: those of `inputs` and `outputs`.

    Names of inputs are the contract's. `weights` are q, k and v in one (E, (Hq + 2 H) * D), o_proj, gate_proj, up_proj,
    down_proj, and the two norms, in the type `dtype`.
    """
    given = {
        name: _value(TensorSpec(name=name, dtype=str(x.dtype), shape=x.shape)) for name, x in inputs.items()
    }
    b = NodeBuilder(given, {})
    w = {name: b.constant(f"{LAYER}/{name}/weight", array) for name, array in weights.items()}
    layer = layer_form(form, b, geometry, dtype)
    heads, kv_heads, dim = geometry.num_attention_heads, geometry.num_key_value_heads, geometry.head_dim

    x = given["inputs_embeds"]
    qkv = b.op(
        "MatMul",
        [layer.rms_norm(x, w["input_norm"], epsilon, f"{LAYER}/norm"), w["qkv_proj"]],
        f"{LAYER}/qkv_proj",
    )
    qkv = b.op("Reshape", [qkv, b.constant("/shape/0,0,-1,D", [0, 0, -1, dim])], f"{LAYER}/heads")
    qkv = b.op("Transpose", [qkv], f"{LAYER}/heads", perm=[0, 2, 1, 3])
    counts = b.constant("/split/heads", [heads, kv_heads, kv_heads])
    query, key, value = b.split("Split", [qkv, counts], f"{LAYER}/heads", 3, axis=1)
    query, key = layer.rotate(query, f"{LAYER}/q"), layer.rotate(key, f"{LAYER}/k")
    key, value = (
        layer.write(given[f"past_key_values.0.{name}"], new, f"{LAYER}/{name}", output=f"present.0.{name}")
        for name, new in (("key", key), ("value", value))
    )
    mixed = b.op("Transpose", [layer.attend(query, key, value, LAYER)], f"{LAYER}/merge", perm=[0, 2, 1, 3])
    mixed = b.op("Reshape", [mixed, b.constant("/shape/0,0,-1", [0, 0, -1])], f"{LAYER}/merge")
    x = b.op("Add", [x, b.op("MatMul", [mixed, w["o_proj"]], f"{LAYER}/o_proj")], f"{LAYER}/residual")

    normed = layer.rms_norm(x, w["post_attention_norm"], epsilon, f"{LAYER}/mlp/norm")
    gate, up = (b.op("MatMul", [normed, w[name]], f"{LAYER}/mlp/{name}") for name in ("gate_proj", "up_proj"))
    gate = b.op("Mul", [gate, b.op("Sigmoid", [gate], f"{LAYER}/mlp/gate")], f"{LAYER}/mlp/gate")
    gated = b.op("Mul", [gate, up], f"{LAYER}/mlp/gated")
    down = b.op("MatMul", [gated, w["down_proj"]], f"{LAYER}/mlp/down_proj")
    b.op("Add", [x, down], f"{LAYER}/mlp/residual", output="hidden")

    for name, shape in outputs.items():
        promised = _value(TensorSpec(name=name, dtype=dtype, shape=shape))
        b.outputs[name].type, b.outputs[name].shape = promised.type, promised.shape
    graph = ir.Graph(
        list(given.values()),
        [b.outputs[name] for name in outputs],
        nodes=b.taken(),
        initializers=list(b.initializers.values()),
        opset_imports={"": layer.opset},
        name="probe",
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="safecode-trt")


def _value(tensor: TensorSpec) -> ir.Value:
    return ir.Value(name=tensor.name, type=ir.TensorType(DTYPES[tensor.dtype]), shape=ir.Shape(tensor.shape))
