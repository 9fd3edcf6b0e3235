"""Which nodes of a graph only compute shapes; ONNX Runtime may leave those to the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

__all__ = ["shape_nodes"]

INDEX_TYPES = {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL}
SHAPE_OPERATORS = {"Shape", "Size"}


def shape_nodes(path: Path) -> tuple[str, ...]:
    """The names of the nodes of an ONNX file that read neither activations nor weights, in the file's order.

    Activations are graph inputs, and weights are constants of more than one element, both of another type than
    int32, int64 and bool. Every node but Shape and Size passes them on to its outputs. A node with a graph inside,
    such as If, counts as reading activations. The weights' own file is not read.
    """
    graph = ir.load(path).graph
    data = {value for value in graph.inputs if value.dtype not in INDEX_TYPES}
    data.update(value for value in graph.initializers.values() if _is_weight(value.const_value))
    shapes, others = list[str](), set[str]()
    for node in graph:  # ONNX demands that a node comes after those whose outputs it reads
        if _reads(node, data):
            data.update(node.outputs)
            others.add(str(node.name))
        else:
            shapes.append(str(node.name or ""))
    return tuple(name for name in dict.fromkeys(shapes) if name and name not in others)


def _reads(node: ir.Node, data: set[ir.Value]) -> bool:
    """Whether a node computes with activations or weights."""
    if node.op_type in SHAPE_OPERATORS:
        return False
    attributes = node.attributes.values()
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in attributes):
        return True
    return not data.isdisjoint(_values(node.inputs)) or _holds_a_weight(node)


def _values(inputs: Iterable[ir.Value | None]) -> Iterable[ir.Value]:
    return (value for value in inputs if value is not None)


def _holds_a_weight(node: ir.Node) -> bool:
    """Whether a Constant node is one that would be a weight as an initializer."""
    value = node.attributes.get("value")
    return node.op_type == "Constant" and value is not None and _is_weight(value.as_tensor())


def _is_weight(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype not in INDEX_TYPES and tensor.size > 1
