"""The decoder as ONNX IR, written layer by layer from the checkpoint: no tracing, one tensor in memory at a time.

The graph's inputs and outputs are `contract.decoder_graph`. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt.contract import ACTIVATION_DTYPE, AttentionForm, Geometry, Precision, decoder_graph
from safecode_trt.errors import CheckpointError
from safecode_trt.export.attention import LayerForm, layer_form
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.config import WeightConfig
from safecode_trt.export.graph import DTYPES, GraphBuilder, WeightFile
from safecode_trt.export.linear import LinearWriter
from safecode_trt.manifest import Quantization
from safecode_trt.models import ModelSpec, TextConfig, WeightNames

__all__ = ["Report", "write_decoder"]

Report = Callable[[int, int], None]


def write_decoder(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    geometry: Geometry,
    path: Path,
    *,
    precision: Precision,
    attention: AttentionForm = "portable",
    weights: WeightConfig = WeightConfig(),
    report: Report = lambda done, total: None,
) -> Mapping[str, Quantization]:
    """Writes the graph to `path` and its weights beside it, to `path` + ".data".

    Returns how each quantised tensor was quantised. `report` is called with the parts done and the parts in all.

    Raises:
        CheckpointError: a tensor is missing, has another shape than config.json makes it, or is not finite, or
            there are more layers than config.json says.
        ConfigError: the settings do not fit each other, or a size of the model is no multiple of the block size.
    """
    with WeightFile(path.with_name(path.name + ".data")) as file:
        dtype = ACTIVATION_DTYPE[precision]
        graph = decoder_graph(geometry, precision, spec.decoder_inputs(dtype))
        builder = GraphBuilder(graph, file)
        linear = LinearWriter(builder, checkpoint, precision, weights)
        form = layer_form(attention, builder, geometry, dtype)
        decoder = _Decoder(
            builder, checkpoint, spec.text, spec.weights, geometry, DTYPES[dtype].numpy(), form, linear
        )
        decoder.write(report)
        ir.save(builder.model("decoder", max(form.opset, linear.opset)), path)
    return linear.quantization


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A Llama-like decoder in the making; `text` says where it has biases and norms that a Llama has not."""

    builder: GraphBuilder
    checkpoint: Checkpoint
    text: TextConfig
    names: WeightNames
    geometry: Geometry
    dtype: np.dtype[Any]
    form: LayerForm
    linear: LinearWriter

    def write(self, report: Report) -> None:
        """The layers, then the head at the one position that each row asks for."""
        b, text, total = self.builder, self.text, self.text.num_hidden_layers + 1
        self._refuse_more_layers()
        x = b.inputs["inputs_embeds"]
        for i in range(text.num_hidden_layers):
            x = self.attention(x, i, f"/model/layers.{i}")
            x = self.mlp(x, i, f"/model/layers.{i}")
            if (added := b.inputs.get(f"deepstack.{i}")) is not None:
                x = b.op("Add", [x, added], f"/model/layers.{i}/deepstack")
            report(i + 1, total)
        x = b.op("GatherND", [x, b.inputs["logit_positions"]], "/model/logit_positions", batch_dims=1)
        x = self.norm(x, self.names.norm, "/model/norm", text.hidden_size)
        half = self.dtype != np.float32
        head = [(self._head_name(), text.vocab_size)]
        x = self.linear(x, head, text.hidden_size, "/lm_head", head=True, output=None if half else "logits")
        if half:
            b.op("Cast", [x], "/logits", output="logits", to=ir.DataType.FLOAT)
        report(total, total)

    def attention(self, x: ir.Value, i: int, path: str) -> ir.Value:
        """x + o_proj(attention(norm(x))); the layer's keys and values go into the cache."""
        b, g, text = self.builder, self.geometry, self.text
        layer, path = self.names.layer.format(i=i), f"{path}/self_attn"
        heads, kv_heads, dim = g.num_attention_heads, g.num_key_value_heads, g.head_dim
        normed = self.norm(x, f"{layer}input_layernorm.weight", f"{path}/norm", text.hidden_size)
        rows = (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads))
        parts = [(f"{layer}self_attn.{name}", count * dim) for name, count in rows]
        qkv = self.project(normed, parts, text.hidden_size, f"{path}/qkv_proj", bias=text.qkv_bias)
        qkv = b.op("Reshape", [qkv, b.constant("/shape/0,0,-1,D", [0, 0, -1, dim])], f"{path}/heads")
        qkv = b.op("Transpose", [qkv], f"{path}/heads", perm=[0, 2, 1, 3])
        counts = b.constant("/split/heads", [heads, kv_heads, kv_heads])
        query, key, value = b.split("Split", [qkv, counts], f"{path}/heads", 3, axis=1)
        if text.qk_norm:
            query, key = (
                self.norm(part, f"{layer}self_attn.{name}.weight", f"{path}/{name}", dim)
                for name, part in (("q_norm", query), ("k_norm", key))
            )
        query, key = self.form.rotate(query, f"{path}/q"), self.form.rotate(key, f"{path}/k")
        key, value = (
            self.form.write(
                b.inputs[f"past_key_values.{i}.{name}"], new, f"{path}/{name}", output=f"present.{i}.{name}"
            )
            for name, new in (("key", key), ("value", value))
        )
        mixed = self.form.attend(query, key, value, path)
        mixed = b.op("Transpose", [mixed], f"{path}/merge", perm=[0, 2, 1, 3])
        mixed = b.op("Reshape", [mixed, b.constant("/shape/0,0,-1", [0, 0, -1])], f"{path}/merge")
        o_proj = [(f"{layer}self_attn.o_proj", text.hidden_size)]
        out = self.project(mixed, o_proj, heads * dim, f"{path}/o_proj", bias=text.o_bias)
        return b.op("Add", [x, out], f"{path}/residual")

    def mlp(self, x: ir.Value, i: int, path: str) -> ir.Value:
        """x + down_proj(swish(gate_proj(norm(x))) * up_proj(norm(x)))."""
        b, text = self.builder, self.text
        layer, path = self.names.layer.format(i=i), f"{path}/mlp"
        normed = self.norm(x, f"{layer}post_attention_layernorm.weight", f"{path}/norm", text.hidden_size)
        parts = [(f"{layer}mlp.{name}", text.intermediate_size) for name in ("gate_proj", "up_proj")]
        both = self.project(normed, parts, text.hidden_size, f"{path}/gate_up_proj", bias=text.mlp_bias)
        gate, up = b.split("Split", [both], f"{path}/gate_up", 2, axis=-1, num_outputs=2)
        # Not Swish: ONNX Runtime fuses these two into one kernel, and takes Swish apart into five nodes.
        gate = b.op("Mul", [gate, b.op("Sigmoid", [gate], f"{path}/gate")], f"{path}/gate")
        gated = b.op("Mul", [gate, up], f"{path}/gated")
        down_proj = [(f"{layer}mlp.down_proj", text.hidden_size)]
        out = self.project(gated, down_proj, text.intermediate_size, f"{path}/down_proj", bias=text.mlp_bias)
        return b.op("Add", [x, out], f"{path}/residual")

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
        with np.errstate(over="ignore"):
            vector = self.checkpoint.get(name, (size,)).astype(self.dtype)
        if not np.isfinite(vector).all():
            raise CheckpointError(f"tensor {name} has values beyond float16's range; use fp32 or int8")
        return vector

    def _refuse_more_layers(self) -> None:
        """The weights may not have a layer behind the last one: it would be left out without a word."""
        count = self.text.num_hidden_layers
        if more := next(self.checkpoint.names(self.names.layer.format(i=count)), None):
            raise CheckpointError(
                f"{self.checkpoint.folder}: the weights have a tensor {more}, but config.json says that there are "
                f"{count} layers (num_hidden_layers)"
            )

    def _head_name(self) -> str:
        """A head in the checkpoint counts, even where config.json says that there is none of its own."""
        tied = self.text.tie_word_embeddings and self.names.lm_head not in self.checkpoint
        return self.names.embed_tokens if tied else self.names.lm_head
