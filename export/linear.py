"""Products with a weight: in floating point, or quantised with DequantizeLinear in front of an ordinary MatMul.

Several checkpoint tensors that multiply the same input become one weight, side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from safecode_trt.contract import ACTIVATION_DTYPE, Precision
from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.graph import GraphBuilder
from safecode_trt.export.quantize import Bits, pack_int4, quantize

__all__ = ["LinearWriter", "Part"]

Part = tuple[str, int]  # name in the checkpoint, number of outputs
# Blocks along the inputs in both: ONNX Runtime then runs either as MatMulNBits.
BITS: Mapping[Precision, Bits] = {"int8": 8, "int4": 4}
# Verdicts and refusals are read off the head's logits: with 8 bits there, int4 agrees with float32 more often than
# with 4, and a step takes hardly longer.
HEAD_BITS: Bits = 8


class LinearWriter:
    """Writes x @ w for weights of a checkpoint; `errors` has the quantisation error of each tensor."""

    def __init__(
        self, builder: GraphBuilder, checkpoint: Checkpoint, precision: Precision, block_size: int
    ) -> None:
        self._builder, self._checkpoint = builder, checkpoint
        self._dtype = np.dtype(ACTIVATION_DTYPE[precision])
        self._bits, self._block_size = BITS.get(precision), block_size
        # Blocked DequantizeLinear is of opset 21.
        self.opset = 21 if self._bits else 1
        self.errors: dict[str, float] = {}

    def __call__(
        self,
        x: ir.Value,
        parts: Sequence[Part],
        inputs: int,
        path: str,
        *,
        head: bool = False,
        output: str | None = None,
    ) -> ir.Value:
        """x (..., inputs) times the parts side by side: (..., sum of their outputs).

        `head` says that these are the logits; `output` names an output of the graph.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or its values do not fit the type.
            ConfigError: `inputs` is no multiple of the block size.
        """
        if self._bits is None:
            weight = self._float_weight(parts, inputs, path)
        else:
            weight = self._quantized_weight(parts, inputs, path, HEAD_BITS if head else self._bits)
        return self._builder.op("MatMul", [x, weight], path, output=output)

    def _float_weight(self, parts: Sequence[Part], inputs: int, path: str) -> ir.Value:
        weight = np.empty((inputs, sum(outputs for _, outputs in parts)), self._dtype)
        start = 0
        for name, outputs in parts:
            columns = weight[:, start : start + outputs]
            with np.errstate(over="ignore"):
                columns[...] = self._checkpoint.get(name, (outputs, inputs)).T
            if self._dtype == np.float16 and not np.isfinite(columns).all():
                raise CheckpointError(f"tensor {name} has values beyond float16's range; use fp32 or int8")
            start += outputs
        return self._builder.weight(f"{path}/weight", weight)

    def _quantized_weight(self, parts: Sequence[Part], inputs: int, path: str, bits: Bits) -> ir.Value:
        if inputs % self._block_size:
            raise ConfigError(
                f"{parts[0][0]} has {inputs} inputs, no multiple of block_size {self._block_size}; "
                "choose another block size, or fp16 or fp32"
            )
        b, shape = self._builder, (inputs, sum(outputs for _, outputs in parts))
        values = np.empty(shape, np.int8)
        scales = np.empty((inputs // self._block_size, shape[1]), np.float32)
        start = 0
        for name, outputs in parts:
            part = quantize(self._checkpoint.get(name, (outputs, inputs)), bits, self._block_size)
            values[:, start : start + outputs], scales[:, start : start + outputs] = part.values, part.scales
            self.errors[name] = part.error
            start += outputs
        if bits == 4:
            weight = b.weight(f"{path}/weight", pack_int4(values), dtype=ir.DataType.INT4, shape=shape)
        else:
            weight = b.weight(f"{path}/weight", values)
        scale = b.weight(f"{path}/scale", scales)
        return b.op("DequantizeLinear", [weight, scale], path, axis=0, block_size=self._block_size)
