"""A bundle's portable decoder rewritten into the decomposed form; for a TensorRT that does not take the portable one.

What comes out is the graph that `export --attention decomposed` writes; the weights are not read.
"""

from __future__ import annotations

import onnx_ir as ir

from safecode_trt.contract import Geometry
from safecode_trt.export.attention import DecomposedForm
from safecode_trt.export.graph import NodeBuilder
from safecode_trt.export.linear import BLOCKED_OPSET

__all__ = ["decompose"]


def decompose(model: ir.Model, geometry: Geometry, dtype: str) -> None:
    """Rewrites a decoder of the portable form in place; `dtype` is that of its activations, in numpy's words."""
    graph = model.graph
    nodes, builder = list(graph), NodeBuilder.on(graph)
    form = DecomposedForm(builder, geometry, dtype)
    graph.insert_before(nodes[0], builder.taken())
    for node in nodes:
        value = _rewritten(node, form, builder.inputs["attention_bias"])
        if value is None:
            continue
        graph.insert_before(node, builder.taken())
        (old,) = node.outputs
        value.type, value.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    quantised = any(node.op_type == "DequantizeLinear" for node in nodes)
    graph.opset_imports[""] = max(form.opset, BLOCKED_OPSET if quantised else 1)


def _rewritten(node: ir.Node, form: DecomposedForm, mask: ir.Value) -> ir.Value | None:
    """What takes the place of the node's output; None for a node that both forms have."""
    path = str(node.name).removesuffix(f"/{node.op_type}")
    inputs = [value for value in node.inputs if value is not None]
    match node.op_type:
        case "RMSNormalization":
            x, weight = inputs
            return form.rms_norm(x, weight, node.attributes["epsilon"].as_float(), path)
        case "RotaryEmbedding":
            return form.rotate(inputs[0], path)
        case "TensorScatter":
            past, update, _ = inputs
            return form.write(past, update, path, output=str(node.outputs[0].name))
        case "Attention":
            query, key, value, bias = inputs
            if bias is mask:
                return form.attend(query, key, value, path)
            return form.cross_attend(query, key, value, bias, path)
        case _:
            return None
