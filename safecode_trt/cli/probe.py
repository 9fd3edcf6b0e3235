"""A graph of two nodes, small enough to be written by hand, that a backend must really execute.

It holds the two operators that older runtimes lack: TensorScatter writes a key into a cache and Attention reads
it back. Written as protobuf bytes here, so that a device needs no onnx package for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["expected", "feeds", "graph_bytes"]

OPSET, IR_VERSION = 24, 11
FLOAT, INT64 = 1, 7
CACHE, NEW = (1, 1, 4, 2), (1, 1, 1, 2)
INPUTS = {"cache": (FLOAT, CACHE), "key": (FLOAT, NEW), "query": (FLOAT, NEW), "position": (INT64, (1,))}
OUTPUTS = {"seen": (FLOAT, NEW)}
NODES = (
    ("TensorScatter", ("cache", "key", "position"), "written"),
    ("Attention", ("query", "written", "written"), "seen"),
)


def graph_bytes() -> bytes:
    """The graph as a serialised ONNX model."""
    nodes = b"".join(_field(1, _node(*node)) for node in NODES)
    inputs = b"".join(_field(11, _value(name, *value)) for name, value in INPUTS.items())
    outputs = b"".join(_field(12, _value(name, *value)) for name, value in OUTPUTS.items())
    graph = nodes + _field(2, b"probe") + inputs + outputs
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET))


def feeds() -> Mapping[str, NDArray[Any]]:
    """Inputs that make every element of the answer different."""
    cache = np.linspace(-1, 1, 8, dtype=np.float32).reshape(CACHE)
    key, query = np.full(NEW, 0.5, np.float32), np.array([1, -2], np.float32).reshape(NEW)
    return {"cache": cache, "key": key, "query": query, "position": np.array([2], np.int64)}


def expected() -> NDArray[np.float32]:
    """What the graph computes, in numpy."""
    given = feeds()
    keys = given["cache"][0, 0].copy()
    keys[2] = given["key"][0, 0, 0]
    scores = np.exp(keys @ given["query"][0, 0, 0] / np.sqrt(2))
    return np.asarray(scores / scores.sum() @ keys, dtype=np.float32).reshape(NEW)


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(4, operator.encode())


def _value(name: str, element: int, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    tensor = _field(1, element) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    head = bytearray()
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])
