"""Building blocks of a graph in ONNX IR: nodes named by path, weights streamed into one data file.

Knows nothing of models. Only the default operator domain is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt import __version__
from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError

__all__ = ["DTYPES", "GraphBuilder", "WeightFile", "narrow"]

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
            f"tensor {name} has values beyond float16's range; "
            "use precision fp32, or int8 with fp32 activations"
        )
    return target


class GraphBuilder:
    """Collects nodes and initializers in order; `model` makes an ONNX model of them."""

    def __init__(self, spec: GraphSpec, weights: WeightFile) -> None:
        self._spec, self._weights = spec, weights
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._constants: dict[str, NDArray[Any]] = {}
        self.inputs = {tensor.name: _value(tensor) for tensor in spec.inputs}
        self.outputs: dict[str, ir.Value] = {}

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
        known = self._constants.setdefault(name, array)
        if known is array:
            return self._add(ir.Tensor(array, name=name))
        if known.dtype != array.dtype or not np.array_equal(known, array):
            raise ValueError(f"constant {name} is {known}, and cannot be {array} too")
        return self._initializers[name]

    def weight(
        self, name: str, data: NDArray[Any], *, dtype: ir.DataType | None = None, shape: Sequence[int] = ()
    ) -> ir.Value:
        """A tensor in the data file; `dtype` and `shape` are for packed data and default to the array's."""
        tensor_type = dtype if dtype is not None else ir.DataType.from_numpy(data.dtype)
        return self._add(self._weights.append(name, data, tensor_type, shape or data.shape))

    def _add(self, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
        name = str(tensor.name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self._initializers[name] = value
        return value

    def model(self, name: str, opset: int) -> ir.Model:
        """The model. Its inputs and outputs are the spec's, in the spec's order."""
        outputs = [self.outputs[tensor.name] for tensor in self._spec.outputs]
        for value, tensor in zip(outputs, self._spec.outputs, strict=True):
            promised = _value(tensor)
            value.type, value.shape = promised.type, promised.shape
        graph = ir.Graph(
            list(self.inputs.values()),
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": opset},
            name=name,
        )
        return ir.Model(
            graph, ir_version=IR_VERSION, producer_name="safecode-trt", producer_version=__version__
        )


def _value(tensor: TensorSpec) -> ir.Value:
    return ir.Value(name=tensor.name, type=ir.TensorType(DTYPES[tensor.dtype]), shape=ir.Shape(tensor.shape))
