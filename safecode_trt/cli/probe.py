"""Graphs of two or three nodes, small enough to be written by hand, that a backend must really execute.

Both attend over a small cache: the portable one writes a key with TensorScatter and reads it back with Attention,
as bundles do; the decomposed one has MatMul and Softmax only. Written as protobuf bytes here, so that a device
needs no onnx package for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import AttentionForm

__all__ = ["expected", "feeds", "graph_bytes"]

IR_VERSION = 10
FLOAT, INT64 = 1, 7
CACHE, TRANSPOSED, NEW = (1, 1, 4, 2), (1, 1, 2, 4), (1, 1, 1, 2)
OPSET: Mapping[AttentionForm, int] = {"portable": 24, "decomposed": 17}
TYPES = {
    "query": (FLOAT, NEW),
    "cache": (FLOAT, CACHE),
    "key": (FLOAT, NEW),
    "position": (INT64, (1,)),
    "keys": (FLOAT, CACHE),
    "keys_transposed": (FLOAT, TRANSPOSED),
    "seen": (FLOAT, NEW),
}
NODES: Mapping[AttentionForm, Sequence[tuple[str, tuple[str, ...], str]]] = {
    "portable": (
        ("TensorScatter", ("cache", "key", "position"), "written"),
        ("Attention", ("query", "written", "written"), "seen"),
    ),
    "decomposed": (
        ("MatMul", ("query", "keys_transposed"), "scores"),
        ("Softmax", ("scores",), "weights"),
        ("MatMul", ("weights", "keys"), "seen"),
    ),
}
INPUTS: Mapping[AttentionForm, tuple[str, ...]] = {
    "portable": ("query", "cache", "key", "position"),
    "decomposed": ("query", "keys", "keys_transposed"),
}


def graph_bytes(form: AttentionForm) -> bytes:
    """The graph as a serialised ONNX model."""
    nodes = b"".join(_field(1, _node(*node)) for node in NODES[form])
    inputs = b"".join(_field(11, _value(name)) for name in INPUTS[form])
    graph = nodes + _field(2, b"probe") + inputs + _field(12, _value("seen"))
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET[form]))


def feeds(form: AttentionForm) -> Mapping[str, NDArray[Any]]:
    """Inputs that make every element of the answer different."""
    query, cache, key, keys = _numbers()
    scaled = query / np.sqrt(np.float32(2))  # Attention scales by itself
    if form == "decomposed":
        return {"query": scaled, "keys": keys, "keys_transposed": np.ascontiguousarray(keys.swapaxes(2, 3))}
    return {"query": query, "cache": cache, "key": key, "position": np.array([2], np.int64)}


def expected() -> NDArray[np.float32]:
    """What both graphs compute, in numpy."""
    query, _, _, keys = _numbers()
    scores = np.exp(query @ keys.swapaxes(2, 3) / np.sqrt(2))
    return np.asarray(scores / scores.sum() @ keys, dtype=np.float32)


def _numbers() -> tuple[NDArray[np.float32], ...]:
    """Query, cache, new key, and the cache with the key written."""
    query = np.array([1, -2], np.float32).reshape(NEW)
    cache = np.linspace(-1, 1, 8, dtype=np.float32).reshape(CACHE)
    key = np.full(NEW, 0.5, np.float32)
    keys = cache.copy()
    keys[:, :, 2:3] = key
    return query, cache, key, keys


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(4, operator.encode())


def _value(name: str) -> bytes:
    element, shape = TYPES[name]
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
