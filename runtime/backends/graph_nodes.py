"""The nodes of an ONNX file, as far as placement needs them, read from the protobuf itself: a device has no onnx.

Tells which nodes only compute shapes. Knows nothing of backends.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safecode_trt.errors import BundleError

__all__ = ["shape_nodes"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
INTEGERS = {6, 7, 9}  # TensorProto's int32, int64, bool: what shapes are made of
SHAPE_OPERATORS = {"Shape", "Size"}
# Field numbers of ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto and TypeProto.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT = 1, 5, 11
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR = 1, 2, 3, 4
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME = 1, 2, 8
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_ELEMENT = 1, 2, 1, 1


@dataclass(slots=True)
class Node:
    """A node by the names of its inputs and outputs."""

    name: str = ""
    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def shape_nodes(path: Path) -> frozenset[str]:
    """The names of the nodes that read neither activations nor weights: what they compute are shapes and indices.

    Activations come from the graph's inputs of other types than integers, weights are initializers of such types
    with more than one element; both are passed on by every node but Shape and Size.

    Raises:
        BundleError: the file is not ONNX.
    """
    try:
        with path.open("rb") as file:
            return _shape_nodes(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (IndexError, ValueError) as error:
        raise BundleError(f"{path} is not an ONNX graph ({error}); export again") from error


def _shape_nodes(model: memoryview) -> frozenset[str]:
    carrying, nodes = set[str](), list[Node]()
    for graph in _messages(model, MODEL_GRAPH):
        for number, value in _fields(graph):
            if isinstance(value, int):
                continue
            if number == GRAPH_NODE:
                nodes.append(_node(value))
            elif number == GRAPH_INITIALIZER and (weight := _weight(value)):
                carrying.add(weight)
            elif number == GRAPH_INPUT and (activation := _activation(value)):
                carrying.add(activation)
    shapes, others = set[str](), set[str]()
    for node in nodes:  # ONNX demands that a node stands behind those whose outputs it reads
        reads = node.operator not in SHAPE_OPERATORS and not carrying.isdisjoint(node.inputs)
        if reads:
            carrying.update(node.outputs)
        (others if reads else shapes).add(node.name)
    return frozenset(shapes - others - {""})


def _node(message: memoryview) -> Node:
    node = Node()
    for number, value in _fields(message):
        if isinstance(value, int):
            continue
        if number == NODE_INPUT:
            node.inputs.append(_text(value))
        elif number == NODE_OUTPUT:
            node.outputs.append(_text(value))
        elif number == NODE_NAME:
            node.name = _text(value)
        elif number == NODE_OPERATOR:
            node.operator = _text(value)
    return node


def _weight(message: memoryview) -> str:
    """The name of an initializer that is neither integers nor a single number; otherwise nothing."""
    name, element, count = "", 0, 1
    for number, value in _fields(message):
        if number == TENSOR_DIMS:
            for size in [value] if isinstance(value, int) else _varints(value):
                count *= size
        elif number == TENSOR_TYPE and isinstance(value, int):
            element = value
        elif number == TENSOR_NAME and not isinstance(value, int):
            name = _text(value)
    return name if element not in INTEGERS and count > 1 else ""


def _activation(message: memoryview) -> str:
    """The name of a graph input that is not of integers; otherwise nothing."""
    name, element = "", 0
    for number, value in _fields(message):
        if isinstance(value, int):
            continue
        if number == VALUE_NAME:
            name = _text(value)
        elif number == VALUE_TYPE:
            for tensor in _messages(value, TYPE_TENSOR):
                element = next(
                    (v for n, v in _fields(tensor) if n == TENSOR_ELEMENT and isinstance(v, int)), 0
                )
    return name if element not in INTEGERS else ""


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == wanted and not isinstance(value, int):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: numbers, and bytes that are not looked into."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _varint(data, place)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        if place + size > len(data):
            raise ValueError("it ends too early")
        yield number, data[place : place + size]
        place += size


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _text(data: memoryview) -> str:
    return bytes(data).decode("utf-8", errors="replace")
