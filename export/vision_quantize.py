"""Makes the weights of a traced vision encoder smaller: int8 by output channel, or float16, cast where it is used.

Only the large matrices of MatMul and Gemm; convolutions, position tables and norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt.contract import VisionPrecision
from safecode_trt.errors import CheckpointError
from safecode_trt.export.quantize import quantize
from safecode_trt.manifest import Quantization

__all__ = ["shrink_weights"]

SMALLEST = 64 * 64
# By channel, not in blocks: the graph can keep the opset that TensorRT 10.3 reads.
INT8 = Quantization(bits=8, block_size=None)


def shrink_weights(model: ir.Model, precision: VisionPrecision) -> Mapping[str, Quantization]:
    """Changes the model's large weights in place; returns how each that became int8 was quantised.

    Raises:
        CheckpointError: a weight has values beyond float16's range.
    """
    quantization: dict[str, Quantization] = {}
    for weight in list(model.graph.initializers.values()):
        axis = _output_axis(weight)
        if axis is None or weight.const_value is None:
            continue
        name, array = str(weight.name), weight.const_value.numpy()
        if precision == "int8":
            quantization[f"vision_encoder/{name}"] = _to_int8(model.graph, weight, array, axis)
        elif precision == "fp16" and array.dtype == np.float32:
            _to_float16(model.graph, weight, array)
    return quantization


def _output_axis(weight: ir.Value) -> int | None:
    """Which axis of a large matrix counts the outputs; None for what is no such weight in all its uses."""
    if weight.shape is None or len(weight.shape) != 2 or np.prod(weight.shape.numpy()) < SMALLEST:
        return None
    axes = set()
    for node, place in weight.uses():
        if place != 1 or node.op_type not in ("MatMul", "Gemm"):
            return None
        axes.add(0 if node.attributes.get_int("transB", 0) else 1)
    return axes.pop() if len(axes) == 1 else None


def _to_int8(graph: ir.Graph, weight: ir.Value, array: NDArray[Any], axis: int) -> Quantization:
    wide = array.astype(np.float32)
    found = quantize(wide if axis == 0 else wide.T, INT8)
    values = np.ascontiguousarray(found.values.T) if axis == 0 else found.values
    operands = [
        _initializer(graph, f"{weight.name}_int8", values),
        _initializer(graph, f"{weight.name}_scale", found.scales[0].astype(array.dtype)),
    ]
    _replace(graph, weight, ir.node("DequantizeLinear", operands, {"axis": axis}))
    return found.how


def _to_float16(graph: ir.Graph, weight: ir.Value, array: NDArray[Any]) -> None:
    """Half the file; ONNX Runtime computes the Cast once, when it opens the graph."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(
            f"vision weight {weight.name} has values beyond float16's range",
            fix="pass --vision-precision fp32 or int8",
        )
    operand = _initializer(graph, f"{weight.name}_fp16", half)
    _replace(graph, weight, ir.node("Cast", [operand], {"to": ir.DataType.FLOAT}))


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, weight: ir.Value, node: ir.Node) -> None:
    """Puts the node's output in the weight's place, in front of everything else."""
    (output,) = node.outputs
    output.name, output.type, output.shape = f"{weight.name}_restored", weight.type, weight.shape
    node.name = f"{weight.name}/{node.op_type}"
    graph.insert_before(graph[0], node)
    weight.replace_all_uses_with(output)
    del graph.initializers[str(weight.name)]
