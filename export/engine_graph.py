"""A bundle's decoder as TensorRT wants it: a cache of one size, of which a layer reads what the mask shows.

TensorRT's cache update takes no cache of a free length. To read all of a large one for a short reply would be dear,
so every layer reads a `Slice` as long as the mask is wide; on other backends the cache itself is that short.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from safecode_trt.contract import GraphSpec
from safecode_trt.runtime.engines import MASK

__all__ = ["engine_graph"]

PRESENT = "present."
PATH = "/engine"


def engine_graph(path: Path, spec: GraphSpec) -> bytes:
    """The decoder at `path` with the inputs and outputs of `spec`, as a serialised ONNX model.

    The weights stay in the decoder's own data file, which the model names as before.
    """
    model = ir.load(path)
    graph = model.graph
    shapes = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(shapes[str(value.name)])
    mask = next(value for value in graph.inputs if value.name == MASK)
    visible = ir.node("Shape", [mask], {"start": 3, "end": 4}, name=f"{PATH}/visible")
    _name(visible, f"{PATH}/visible")
    start, axis = _constant(graph, f"{PATH}/start", 0), _constant(graph, f"{PATH}/axis", 2)
    graph.insert_before(graph[0], visible)
    for present in graph.outputs:
        update = present.producer()
        if update is None or not str(present.name).startswith(PRESENT):
            continue
        readers = list(present.uses())
        name = f"{PATH}/{present.name}"
        part = ir.node("Slice", [present, start, visible.outputs[0], axis], name=name)
        _name(part, name)
        graph.insert_after(update, part)
        for node, place in readers:
            node.replace_input_with(place, part.outputs[0])
    return ir.serde.serialize_model(model).SerializeToString()


def _name(node: ir.Node, name: str) -> None:
    node.outputs[0].name = f"{name}_output_0"


def _constant(graph: ir.Graph, name: str, value: int) -> ir.Value:
    tensor = ir.Tensor(np.array([value], np.int64), name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(constant)
    return constant
