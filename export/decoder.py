"""The decoder as ONNX IR, written layer by layer from the checkpoint: no tracing, one tensor in memory at a time.

The graph's inputs and outputs are `contract.decoder_graph`. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from safecode_trt.contract import (
    HIDDEN,
    Activations,
    AttentionForm,
    Geometry,
    Precision,
    Tap,
    TapPlace,
    activation_dtype,
    decoder_graph,
)
from safecode_trt.errors import CheckpointError
from safecode_trt.export.attention import layer_form
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.cross_attention import write_cross_attention
from safecode_trt.export.export_config import WeightConfig
from safecode_trt.export.graph import DTYPES, GraphBuilder, WeightFile
from safecode_trt.export.layers import LayerWriter
from safecode_trt.export.linear import LinearWriter
from safecode_trt.manifest import Quantization
from safecode_trt.models import CrossAttention, ModelSpec, WeightNames
from safecode_trt.progress import Progress, no_progress

__all__ = ["write_decoder"]


def write_decoder(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    geometry: Geometry,
    path: Path,
    *,
    precision: Precision,
    attention: AttentionForm = "portable",
    weights: WeightConfig = WeightConfig(),
    activations: Activations = "fp32",
    hidden: bool = False,
    taps: tuple[Tap, ...] = (),
    progress: Progress = no_progress,
) -> Mapping[str, Quantization]:
    """Writes the graph to `path` and its weights next to it, to `path` + ".data".

    `hidden` and `taps` are as in `decoder_graph`. Returns how each quantised tensor was quantised. `progress` is
    told of its parts.

    Raises:
        CheckpointError: a tensor is missing, has another shape than config.json makes it, or is not finite, or
            there are more layers than config.json says.
        ConfigError: the settings do not fit each other, or a size of the model is no multiple of the block size.
    """
    with WeightFile(path.with_name(path.name + ".data")) as file:
        dtype = activation_dtype(precision, activations)
        own = spec.decoder_inputs(dtype)
        graph = decoder_graph(geometry, precision, own, activations=activations, hidden=hidden, taps=taps)
        builder = GraphBuilder(graph, file)
        linear = LinearWriter(builder, checkpoint, precision, weights, dtype)
        form = layer_form(attention, builder, geometry, dtype)
        layers = LayerWriter(builder, checkpoint, spec.text, DTYPES[dtype].numpy(), form, linear)
        _Decoder(layers, spec.weights, spec.cross_attention, geometry, hidden, taps).write(progress)
        ir.save(builder.model("decoder", max(form.opset, linear.opset)), path)
    return linear.quantization


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A Llama-like decoder in the making, with layers between its own that look at the pictures."""

    layers: LayerWriter
    names: WeightNames
    cross: CrossAttention | None
    geometry: Geometry
    hidden: bool
    taps: tuple[Tap, ...]

    def write(self, progress: Progress) -> None:
        """The layers, then the head at the positions that each row asks for."""
        w, b, text = self.layers, self.layers.builder, self.layers.text
        total = text.num_hidden_layers + 1
        self._refuse_more_layers()
        x = b.inputs["inputs_embeds"]
        for i in range(text.num_hidden_layers):
            if self.cross is not None and i % self.cross.interval == 0:
                x = write_cross_attention(w, self.cross, x, i // self.cross.interval)
            x = self.attention(x, i, f"/model/layers.{i}")
            mlp = w.mlp(x, self.names.layer.format(i=i), f"/model/layers.{i}")
            x = b.op("Add", [x, self._tapped(mlp, "mlp", i)], f"/model/layers.{i}/mlp/residual")
            if (added := b.inputs.get(f"deepstack.{i}")) is not None:
                x = b.op("Add", [x, added], f"/model/layers.{i}/deepstack")
            progress("decoder", i + 1, total)
        if self.hidden:
            x = w.norm(x, self.names.norm, "/model/norm", text.hidden_size)
            b.op("Identity", [x], "/hidden", output=HIDDEN)
        positions = b.op("Unsqueeze", [b.inputs["logit_positions"], b.constant("/axes/2", [2])], "/logits")
        x = b.op("GatherND", [x, positions], "/model/logit_positions", batch_dims=1)  # (C, Q, E)
        if not self.hidden:
            x = w.norm(x, self.names.norm, "/model/norm", text.hidden_size)
        half = w.dtype != np.float32
        head = [(self._head_name(), text.vocab_size)]
        x = w.linear(x, head, text.hidden_size, "/lm_head", head=True, output=None if half else "logits")
        if half:
            b.op("Cast", [x], "/logits", output="logits", to=ir.DataType.FLOAT)
        progress("decoder", total, total)

    def attention(self, x: ir.Value, i: int, path: str) -> ir.Value:
        """x + o_proj(attention(norm(x))); the layer's keys and values go into the cache."""
        w, b, g, text = self.layers, self.layers.builder, self.geometry, self.layers.text
        layer, path = self.names.layer.format(i=i), f"{path}/self_attn"
        heads, kv_heads, dim = g.num_attention_heads, g.num_key_value_heads, g.head_dim
        normed = w.norm(x, f"{layer}input_layernorm.weight", f"{path}/norm", text.hidden_size)
        rows = (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads))
        parts = [(f"{layer}self_attn.{name}", count * dim) for name, count in rows]
        qkv = w.project(normed, parts, text.hidden_size, f"{path}/qkv_proj", bias=text.qkv_bias)
        qkv = w.heads(qkv, path)
        counts = b.constant("/split/heads", [heads, kv_heads, kv_heads])
        query, key, value = b.split("Split", [qkv, counts], f"{path}/heads", 3, axis=1)
        if text.qk_norm:
            query, key = (
                w.norm(part, f"{layer}self_attn.{name}.weight", f"{path}/{name}", dim)
                for name, part in (("q_norm", query), ("k_norm", key))
            )
        query, key = w.form.rotate(query, f"{path}/q"), w.form.rotate(key, f"{path}/k")
        key, value = (
            w.form.write(
                b.inputs[f"past_key_values.{i}.{name}"], new, f"{path}/{name}", output=f"present.{i}.{name}"
            )
            for name, new in (("key", key), ("value", value))
        )
        mixed = self._tapped(w.merge(w.form.attend(query, key, value, path), path), "heads", i)
        o_proj = [(f"{layer}self_attn.o_proj", text.hidden_size)]
        out = w.project(mixed, o_proj, heads * dim, f"{path}/o_proj", bias=text.o_bias)
        return b.op("Add", [x, self._tapped(out, "attention", i)], f"{path}/residual")

    def _tapped(self, x: ir.Value, place: TapPlace, i: int) -> ir.Value:
        """x as it is read there, plus what is added; x itself where there is no tap."""
        tap, b = Tap(place=place, layer=i), self.layers.builder
        if tap not in self.taps:
            return x
        b.op("Identity", [x], f"/taps/{tap.read}", output=tap.read)
        return b.op("Add", [x, b.inputs[tap.steer]], f"/taps/{tap.steer}")

    def _refuse_more_layers(self) -> None:
        """The weights may not have a layer after the last one: it would be left out without a word."""
        checkpoint, count = self.layers.checkpoint, self.layers.text.num_hidden_layers
        if more := next(checkpoint.names(self.names.layer.format(i=count)), None):
            raise CheckpointError(
                f"{checkpoint.folder}: the weights have a tensor {more}, but config.json says that there are "
                f"{count} layers (num_hidden_layers)"
            )

    def _head_name(self) -> str:
        """A head in the checkpoint counts, even where config.json says that there is none of its own."""
        tied = self.layers.text.tie_word_embeddings and self.names.lm_head not in self.layers.checkpoint
        return self.names.embed_tokens if tied else self.names.lm_head
