"""An ONNX graph as protobuf bytes, written by hand: a device needs no onnx package for it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TYPES", "GraphWriter"]

Array = NDArray[Any]
IR_VERSION = 10
TYPES = {"float32": 1, "int64": 7, "float16": 10}
"""ONNX's numbers of the element types."""


@dataclass
class GraphWriter:
    """Nodes as protobuf bytes, and the constants that they read, by name."""

    weights: dict[str, Array]
    nodes: list[bytes] = field(default_factory=list)

    def constant(self, name: str, values: Sequence[int]) -> None:
        """A vector of int64."""
        self.weights[name] = np.array(values, np.int64)

    def op(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        output = f"{operator}_{len(self.nodes)}"
        self.node(operator, inputs, [output], **attributes)
        return output

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """A node; attributes are integers, floats or lists of integers."""
        parts = [_field(1, name.encode()) for name in inputs] + [_field(2, name.encode()) for name in outputs]
        parts += [_field(3, f"{operator}_{len(self.nodes)}".encode()), _field(4, operator.encode())]
        parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
        self.nodes.append(b"".join(parts))

    def model(
        self, opset: int, inputs: Mapping[str, Array], outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> bytes:
        """The serialised model; outputs are by type and shape."""
        nodes = b"".join(_field(1, node) for node in self.nodes)
        weights = b"".join(_field(5, _tensor(name, value)) for name, value in self.weights.items())
        given = b"".join(_field(11, _value(name, x.dtype.name, x.shape)) for name, x in inputs.items())
        made = b"".join(_field(12, _value(name, *described)) for name, described in outputs.items())
        graph = nodes + _field(2, b"probe") + weights + given + made
        return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, opset))


def _attribute(name: str, value: int | float | Sequence[int]) -> bytes:
    head = _field(1, name.encode())
    if isinstance(value, float):
        return head + _varint(2 << 3 | 5) + struct.pack("<f", value) + _field(20, 1)
    if isinstance(value, int):
        return head + _field(3, value) + _field(20, 2)
    return head + b"".join(_field(8, item) for item in value) + _field(20, 7)


def _tensor(name: str, value: Array) -> bytes:
    dims = b"".join(_field(1, size) for size in value.shape)
    data = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return dims + _field(2, TYPES[value.dtype.name]) + _field(8, name.encode()) + _field(9, data)


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    tensor = _field(1, TYPES[dtype]) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are the complement in 64 bits
    head = bytearray()
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])
