"""A bundle's decoder as TensorRT wants it: a cache of one size, of which a layer reads what the mask shows.

TensorRT's cache update takes no cache of a free length. To read all of a large one for a short reply would be dear,
so every layer reads a `Slice` as long as the mask is wide; on other backends the cache itself is that short.
"""

from __future__ import annotations

import onnx_ir as ir

from safecode_trt.contract import GraphSpec
from safecode_trt.export.graph import NodeBuilder
from safecode_trt.runtime.engine_choice import MASK

__all__ = ["engine_graph"]

PRESENT = "present."
PATH = "/engine"


def engine_graph(model: ir.Model, spec: GraphSpec) -> bytes:
    """The decoder `model`, which is changed, with the inputs and outputs of `spec`, as a serialised ONNX model.

    The weights stay in the decoder's own data file, which the model names as before.
    """
    graph = model.graph
    shapes = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(shapes[str(value.name)])
    builder = NodeBuilder.on(graph)
    start, axis = builder.constant(f"{PATH}/start", [0]), builder.constant(f"{PATH}/axis", [2])
    visible = builder.op("Shape", [builder.inputs[MASK]], f"{PATH}/visible", start=3, end=4)
    graph.insert_before(graph[0], builder.taken())
    for present in graph.outputs:
        update = present.producer()
        if update is None or not str(present.name).startswith(PRESENT):
            continue
        readers = list(present.uses())
        part = builder.op("Slice", [present, start, visible, axis], f"{PATH}/{present.name}")
        graph.insert_after(update, builder.taken())
        for node, place in readers:
            node.replace_input_with(place, part)
    return ir.serde.serialize_model(model).SerializeToString()
