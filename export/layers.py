"""What the layers of a decoder are made of: norms, linear layers side by side, heads, the MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt.export.attention import LayerForm
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.graph import GraphBuilder, narrow
from safecode_trt.export.linear import LinearWriter
from safecode_trt.models import TextConfig

__all__ = ["LayerWriter"]


@dataclass(frozen=True, slots=True)
class LayerWriter:
    """Writes parts of layers; `text` says where they have biases that a Llama has not."""

    builder: GraphBuilder
    checkpoint: Checkpoint
    text: TextConfig
    dtype: np.dtype[Any]
    form: LayerForm
    linear: LinearWriter

    def mlp(self, x: ir.Value, layer: str, path: str, *, gate: ir.Value | None = None) -> ir.Value:
        """gate * down_proj(swish(gate_proj(norm(x))) * up_proj(norm(x))) of a layer in the checkpoint."""
        b, text, path = self.builder, self.text, f"{path}/mlp"
        normed = self.norm(x, f"{layer}post_attention_layernorm.weight", f"{path}/norm", text.hidden_size)
        parts = [(f"{layer}mlp.{name}", text.intermediate_size) for name in ("gate_proj", "up_proj")]
        both = self.project(normed, parts, text.hidden_size, f"{path}/gate_up_proj", bias=text.mlp_bias)
        left, right = b.split("Split", [both], f"{path}/gate_up", 2, axis=-1, num_outputs=2)
        # Not Swish: ONNX Runtime fuses these two into one kernel, and takes Swish apart into five nodes.
        left = b.op("Mul", [left, b.op("Sigmoid", [left], f"{path}/gate")], f"{path}/gate")
        gated = b.op("Mul", [left, right], f"{path}/gated")
        down_proj = [(f"{layer}mlp.down_proj", text.hidden_size)]
        out = self.project(gated, down_proj, text.intermediate_size, f"{path}/down_proj", bias=text.mlp_bias)
        if gate is not None:
            out = b.op("Mul", [out, gate], f"{path}/dense")
        return out

    def project(
        self, x: ir.Value, parts: Sequence[tuple[str, int]], inputs: int, path: str, *, bias: bool
    ) -> ir.Value:
        """x through the linear layers side by side, with their biases; a part is a layer and its outputs."""
        weights = [(f"{name}.weight", outputs) for name, outputs in parts]
        out = self.linear(x, weights, inputs, path)
        if not bias:
            return out
        biases = np.concatenate([self._vector(f"{name}.bias", outputs) for name, outputs in parts])
        return self.builder.op("Add", [out, self.builder.weight(f"{path}/bias", biases)], f"{path}/bias")

    def norm(self, x: ir.Value, name: str, path: str, size: int) -> ir.Value:
        weight = self.builder.weight(f"{path}/weight", self._vector(name, size))
        return self.form.rms_norm(x, weight, self.text.rms_norm_eps, path)

    def _vector(self, name: str, size: int) -> NDArray[Any]:
        """A bias or a norm's weight, which are never quantised."""
        return narrow(self.checkpoint.get(name, (size,)), np.empty(size, self.dtype), name)

    def heads(self, x: ir.Value, path: str) -> ir.Value:
        """(C, T, heads * D) to (C, heads, T, D)."""
        b = self.builder
        shape = b.constant("/shape/0,0,-1,D", [0, 0, -1, self.text.head_dim])
        x = b.op("Reshape", [x, shape], f"{path}/heads")
        return b.op("Transpose", [x], f"{path}/heads", perm=[0, 2, 1, 3])

    def merge(self, x: ir.Value, path: str) -> ir.Value:
        """The inverse of `heads`."""
        b = self.builder
        x = b.op("Transpose", [x], f"{path}/merge", perm=[0, 2, 1, 3])
        return b.op("Reshape", [x, b.constant("/shape/0,0,-1", [0, 0, -1])], f"{path}/merge")
