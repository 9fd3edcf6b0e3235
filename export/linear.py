"""Products with a weight: in floating point, or quantised with DequantizeLinear in front of an ordinary MatMul.

Several checkpoint tensors that multiply the same input become one weight, side by side. ONNX Runtime runs such a pair
as MatMulNBits, in blocks and by channel, with zero points and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt.contract import Precision
from safecode_trt.errors import ConfigError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.export_config import WeightConfig
from safecode_trt.export.graph import DTYPES, GraphBuilder, narrow
from safecode_trt.export.prequantized import Prequantized
from safecode_trt.export.quantize import Quantized, pack_int4, quantize_slabs
from safecode_trt.manifest import Quantization

__all__ = ["BLOCKED_OPSET", "LinearWriter", "Part"]

Scalar = TypeVar("Scalar", bound=np.generic)
Part = tuple[str, int]  # name in the checkpoint, number of outputs
BLOCKED_OPSET = 21
"""The first in which DequantizeLinear takes blocks."""


class LinearWriter:
    """Writes x @ w for weights of a checkpoint; `quantization` says how each tensor was quantised.

    Raises:
        CheckpointError: the checkpoint is quantised already, and not in a way that is read.
        ConfigError: the settings do not fit the precision, or the precision the quantised checkpoint.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        checkpoint: Checkpoint,
        precision: Precision,
        config: WeightConfig,
        dtype: str,
    ) -> None:
        self._builder, self._checkpoint = builder, checkpoint
        self._dtype = DTYPES[dtype].numpy()
        self._body, self._head = (config.quantization(precision, head=head) for head in (False, True))
        self._packed = Prequantized.of(checkpoint)
        if self._packed and precision != "int4":
            raise ConfigError(
                f"must be int4 for {checkpoint.folder}, which was quantised to 4 bits with "
                f"{self._packed.method}; got {precision}",
                field="precision",
            )
        self.opset = BLOCKED_OPSET if self._body else 1
        self.quantization: dict[str, Quantization] = {}

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
        how = self._head if head else self._body
        if how is None:
            weight = self._float_weight(parts, inputs, path)
        else:
            weight = self._quantized_weight(parts, inputs, path, how)
        return self._builder.op("MatMul", [x, weight], path, output=output)

    def _float_weight(self, parts: Sequence[Part], inputs: int, path: str) -> ir.Value:
        weight = np.empty((inputs, sum(outputs for _, outputs in parts)), self._dtype)
        start = 0
        for name, outputs in parts:
            for slab in self._checkpoint.slabs(name, (outputs, inputs)):
                narrow(slab.T, weight[:, start : start + len(slab)], name)
                start += len(slab)
        return self._builder.weight(f"{path}/weight", weight)

    def _quantized_weight(self, parts: Sequence[Part], inputs: int, path: str, how: Quantization) -> ir.Value:
        if self._packed and any(name in self._packed for name, _ in parts):
            # A part that is not packed is quantised to be like its neighbours.
            how = replace(how, bits=4, block_size=self._packed.block_size(inputs))
        elif inputs % (how.block_size or inputs):
            raise ConfigError(
                f"{how.block_size} does not divide the {inputs} inputs of {parts[0][0]}",
                field="block_size",
                fix="choose another --block-size, or --precision fp16 or fp32",
            )
        found = [self._part(name, (outputs, inputs), how) for name, outputs in parts]
        self.quantization.update((name, part.how) for (name, _), part in zip(parts, found, strict=True))
        values = _beside([part.values for part in found])
        scales = _beside([part.scales for part in found])
        zeros = _beside(
            [
                np.zeros(part.scales.shape, np.int8) if part.zero_points is None else part.zero_points
                for part in found
            ]
        )
        b = self._builder
        if how.block_size is None:
            scales, zeros = scales[0], zeros[0]
        grid = {"axis": 1} if how.block_size is None else {"axis": 0, "block_size": how.block_size}
        operands = [
            self._codes(f"{path}/weight", values, how),
            # In the type of the activations, which is also that of what they restore.
            b.weight(f"{path}/scale", narrow(scales, np.empty(scales.shape, self._dtype), parts[0][0])),
        ]
        if zeros.any():
            operands.append(self._codes(f"{path}/zero_point", zeros, how))
        return b.op("DequantizeLinear", operands, path, output=None, **grid)

    def _part(self, name: str, shape: tuple[int, int], how: Quantization) -> Quantized:
        if self._packed and name in self._packed:
            return self._packed.read(name, shape)
        return quantize_slabs(self._checkpoint.slabs(name, shape), shape, how)

    def _codes(self, name: str, codes: NDArray[np.int8], how: Quantization) -> ir.Value:
        if how.bits == 8:
            return self._builder.weight(name, codes)
        return self._builder.weight(name, pack_int4(codes), dtype=ir.DataType.INT4, shape=codes.shape)


def _beside(parts: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    """The parts side by side; one alone, which the head is, is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
