"""A gated layer that looks at the pictures: cross attention, then an MLP, each weighed by a learned gate.

The pictures' keys and values are inputs of the graph; see `models.CrossAttention`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from safecode_trt.export.layers import LayerWriter
from safecode_trt.models import CrossAttention

__all__ = ["write_cross_attention"]


def write_cross_attention(layers: LayerWriter, cross: CrossAttention, x: ir.Value, j: int) -> ir.Value:
    """x after layer j: a token's attention to the positions that its bias leaves it, nothing if its gate is 0."""
    b, text = layers.builder, layers.text
    layer, base = cross.layer.format(j=j), f"/model/cross_layers.{j}"
    path, width = f"{base}/cross_attn", text.num_attention_heads * text.head_dim
    normed = layers.norm(x, f"{layer}input_layernorm.weight", f"{path}/norm", text.hidden_size)
    q_proj = [(f"{layer}cross_attn.q_proj", width)]
    query = layers.heads(layers.project(normed, q_proj, text.hidden_size, f"{path}/q_proj", bias=False), path)
    if cross.qk_norm:
        query = layers.norm(query, f"{layer}cross_attn.q_layer_norm.weight", f"{path}/q_norm", text.head_dim)
    key, value = (
        b.op("Transpose", [b.inputs[f"cross_{name}.{j}"]], f"{path}/{name}", perm=[0, 2, 1, 3])
        for name in ("key", "value")
    )
    bias = b.op("Unsqueeze", [b.inputs["cross_attention_bias"], b.constant("/axes/1", [1])], f"{path}/bias")
    mixed = layers.merge(layers.form.cross_attend(query, key, value, bias, path), path)
    o_proj = [(f"{layer}cross_attn.o_proj", text.hidden_size)]
    out = layers.project(mixed, o_proj, width, f"{path}/o_proj", bias=False)
    out = b.op("Mul", [out, b.inputs["cross_attention_gate"]], f"{path}/seen")
    out = b.op("Mul", [out, _gate(layers, cross, j, "alpha_cross_attn")], f"{path}/gate")
    x = b.op("Add", [x, out], f"{path}/residual")
    mlp = layers.mlp(x, layer, base, gate=_gate(layers, cross, j, "alpha_dense"))
    return b.op("Add", [x, mlp], f"{base}/mlp/residual")


def _gate(layers: LayerWriter, cross: CrossAttention, j: int, name: str) -> ir.Value:
    """tanh of a gate: one number, or one for each of E."""
    alpha = layers.checkpoint.get(f"{cross.layer.format(j=j)}{name}", cross.gate_shape)
    gate = np.tanh(alpha.reshape(-1)).astype(layers.dtype)
    return layers.builder.weight(f"/model/cross_layers.{j}/{name}", gate)
