"""Building blocks of a graph in ONNX IR: nodes named by path, weights streamed into one data file.

Knows nothing of models. Only the default operator domain is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt import __version__
from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError

__all__ = ["DTYPES", "GraphBuilder", "NodeBuilder", "WeightFile", "narrow"]

DTYPES: dict[str, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
}
# Version 10 is the first with 4-bit integers; older readers keep working.
IR_VERSION = 10
PAGE, LINE = 4096, 64


class WeightFile:
    """The external data of a graph: tensors are appended and never held.

    Large tensors begin at a page, so that a reader can map them; small ones at a cache line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def append(
        self, name: str, data: NDArray[Any], dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.ExternalTensor:
        """Writes `data`, the tensor's bytes in ONNX's layout, and returns the reference to them."""
        data = np.ascontiguousarray(data)
        alignment = PAGE if data.nbytes >= PAGE else LINE
        offset = -(-self._file.tell() // alignment) * alignment
        self._file.seek(offset)
        data.tofile(self._file)
        return ir.ExternalTensor(
            self._path.name,
            offset,
            data.nbytes,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=os.fspath(self._path.parent),
        )

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def narrow(values: NDArray[np.float32], target: NDArray[Any], name: str) -> NDArray[Any]:
    """Writes the values of tensor `name` into `target`, which has the type of the activations, and returns it.

    Raises:
        CheckpointError: a value does not fit into it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = values
        # An infinity anywhere makes the sum one too, or NaN, and a sum needs no copy.
        total = target.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise CheckpointError(
            f"tensor {name} has values beyond float16's range",
            fix="pass --precision fp32, or --precision int8 --activations fp32",
        )
    return target


class NodeBuilder:
    """Makes nodes for a graph, which is in the making or there already, and adds small constants to it.

    `inputs` and `initializers` are the graph's, by name; the nodes wait in their order until they are `taken`.
    """

    def __init__(self, inputs: Mapping[str, ir.Value], initializers: MutableMapping[str, ir.Value]) -> None:
        self.inputs, self.initializers = inputs, initializers
        self.outputs: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    @staticmethod
    def on(graph: ir.Graph) -> NodeBuilder:
        """For a graph that is there already."""
        return NodeBuilder({str(value.name): value for value in graph.inputs}, graph.initializers)

    def taken(self) -> list[ir.Node]:
        """The nodes made since the last call; the caller puts them into the graph."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        path: str,
        *,
        output: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """One node with one output; `output` names an output of the graph."""
        (value,) = self.split(op_type, inputs, path, 1, **attributes)
        if output is not None:
            value.name = output
            self.outputs[output] = value
        return value

    def split(
        self, op_type: str, inputs: Sequence[ir.Value], path: str, count: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """One node with `count` outputs."""
        name = f"{path}/{op_type}"
        outputs = [ir.Value(name=f"{name}_output_{i}") for i in range(count)]
        self._nodes.append(ir.node(op_type, inputs, attributes, outputs=outputs, name=name))
        return outputs

    def constant(self, name: str, data: Sequence[int] | NDArray[Any]) -> ir.Value:
        """A small tensor inside the graph's own file; the same name must mean the same tensor."""
        array = data if isinstance(data, np.ndarray) else np.array(data, dtype=np.int64)
        if name not in self.initializers:
            return self._add(ir.Tensor(array, name=name))
        value = self.initializers[name]
        known = None if value.const_value is None else value.const_value.numpy()
        if known is None or known.dtype != array.dtype or not np.array_equal(known, array):
            raise ValueError(f"constant {name} is {known}, and cannot be {array} too")
        return value

    def _add(self, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
        name = str(tensor.name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.initializers[name] = value
        return value


class GraphBuilder(NodeBuilder):
    """Makes a graph from nothing; `model` makes an ONNX model of it."""

    def __init__(self, spec: GraphSpec, weights: WeightFile) -> None:
        super().__init__({tensor.name: _value(tensor) for tensor in spec.inputs}, {})
        self._spec, self._weights = spec, weights

    def weight(
        self, name: str, data: NDArray[Any], *, dtype: ir.DataType | None = None, shape: Sequence[int] = ()
    ) -> ir.Value:
        """A tensor in the data file; `dtype` and `shape` are for packed data and default to the array's."""
        tensor_type = dtype if dtype is not None else ir.DataType.from_numpy(data.dtype)
        return self._add(self._weights.append(name, data, tensor_type, shape or data.shape))

    def model(self, name: str, opset: int) -> ir.Model:
        """The model. Its inputs and outputs are the spec's, in the spec's order."""
        outputs = [self.outputs[tensor.name] for tensor in self._spec.outputs]
        for value, tensor in zip(outputs, self._spec.outputs, strict=True):
            promised = _value(tensor)
            value.type, value.shape = promised.type, promised.shape
        graph = ir.Graph(
            list(self.inputs.values()),
            outputs,
            nodes=self.taken(),
            initializers=list(self.initializers.values()),
            opset_imports={"": opset},
            name=name,
        )
        return ir.Model(
            graph, ir_version=IR_VERSION, producer_name="safecode-trt", producer_version=__version__
        )


def _value(tensor: TensorSpec) -> ir.Value:
    return ir.Value(name=tensor.name, type=ir.TensorType(DTYPES[tensor.dtype]), shape=ir.Shape(tensor.shape))
