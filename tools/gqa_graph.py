"""The same decoder in ONNX Runtime's own operators, to compare with: GroupQueryAttention and MatMulNBits.

Built from the weights of a bundle's portable decoder, repacked and otherwise unchanged. Outside the product:
such a graph runs on ONNX Runtime only, and cannot prefill two rows after a past.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from safecode_trt.bundle import Bundle
from safecode_trt.export.quantize import unpack_int4
from safecode_trt.manifest import DECODER
from safecode_trt.models import load_spec
from safecode_trt.runtime.rotary import RotaryEmbedding

__all__ = ["to_matmul_nbits", "write_gqa_decoder"]

MS = "com.microsoft"
FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32


def to_matmul_nbits(
    codes: NDArray[np.int8], scales: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Signed codes (K, N) of `bits` 4 or 8 and scales (K / block, N) in the layout of MatMulNBits.

    Returns (N, K / block, block * bits / 8), with 4 bits the earlier input in the low half of a byte, and
    (N, K / block). Without zero points MatMulNBits takes half of the codes' range off.
    """
    inputs, outputs = codes.shape
    blocks = len(scales)
    unsigned = (codes.T.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    packed: NDArray[np.uint8] = unsigned.reshape(outputs, blocks, inputs // blocks)
    if bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << np.uint8(4))
    return packed, np.ascontiguousarray(scales.T)


def write_gqa_decoder(bundle: Bundle, path: Path) -> None:
    """Writes the comparison graph of an int4 bundle to `path`, its weights next to it.

    Inputs: inputs_embeds (1, T, E), seqlens_k (1), total_sequence_length and the cache; logits of the last
    position.
    """
    if bundle.manifest.precision != "int4":
        raise ValueError(f"the comparison needs an int4 bundle, got {bundle.manifest.precision}")
    if not all(how.symmetric for how in bundle.manifest.quantization.values()):
        raise ValueError("the comparison needs symmetric weights, got zero points")
    ir.save(_Decoder(bundle).model(), path, external_data=path.name + ".data")


class _Decoder:
    """The comparison graph in the making."""

    def __init__(self, bundle: Bundle) -> None:
        self.geometry, self.text = bundle.manifest.geometry, load_spec(bundle.path).text
        self.weights = ir.load(bundle.file(DECODER)).graph.initializers
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        g = self.geometry
        x = _value("inputs_embeds", FLOAT, (1, "T", g.hidden_size))
        lengths = [_value("seqlens_k", INT32, (1,)), _value("total_sequence_length", INT32, ())]
        cos, sin = RotaryEmbedding(self.text, g.context_length)(np.arange(g.context_length))
        tables = [self.constant(name, table) for name, table in (("cos", cos), ("sin", sin))]
        inputs: list[ir.Value] = [x, *lengths]
        outputs: list[ir.Value] = []
        normed = self.op("SimplifiedLayerNormalization", [x, self.norm_weight(0, "self_attn")], **self.norm)
        for i in range(g.num_hidden_layers):
            past = [self.cache("past_key_values", i, part) for part in ("key", "value")]
            present = [self.cache("present", i, part) for part in ("key", "value")]
            inputs, outputs = inputs + past, outputs + present
            mixed = self.attention(normed, [*past, *lengths, *tables], present, i)
            x, normed = self.add_and_norm(x, mixed, self.norm_weight(i, "mlp"))
            after = self.norm_weight(i + 1, "self_attn") if i + 1 < g.num_hidden_layers else self.last_norm()
            x, normed = self.add_and_norm(x, self.mlp(normed, i), after)
        last = self.op("Gather", [normed, self.constant("last", np.array(-1, np.int64))], "", axis=1)
        logits = self.matmul(last, "/lm_head", g.hidden_size, g.vocab_size)
        logits.name, logits.type, logits.shape = "logits", ir.TensorType(FLOAT), ir.Shape((1, g.vocab_size))
        graph = ir.Graph(
            inputs,
            [logits, *outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": 21, MS: 1},
            name="gqa_decoder",
        )
        return ir.Model(graph, ir_version=10, producer_name="safecode-trt-bench")

    @property
    def norm(self) -> dict[str, Any]:
        return {"domain": "", "axis": -1, "epsilon": self.text.rms_norm_eps}

    def attention(
        self, x: ir.Value, others: Sequence[ir.Value], present: Sequence[ir.Value], i: int
    ) -> ir.Value:
        g = self.geometry
        width = (g.num_attention_heads + 2 * g.num_key_value_heads) * g.head_dim
        qkv = self.matmul(x, f"/model/layers.{i}/self_attn/qkv_proj", g.hidden_size, width)
        mixed = ir.Value(name=f"mixed_{i}")
        operands: list[ir.Value | None] = [qkv, None, None, *others]  # Q, K and V come as one
        self.nodes.append(
            ir.node(
                "GroupQueryAttention",
                operands,
                {"num_heads": g.num_attention_heads, "kv_num_heads": g.num_key_value_heads, "do_rotary": 1},
                domain=MS,
                outputs=[mixed, *present],
            )
        )
        inner = g.num_attention_heads * g.head_dim
        return self.matmul(mixed, f"/model/layers.{i}/self_attn/o_proj", inner, g.hidden_size)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        wide, narrow = self.text.intermediate_size, self.geometry.hidden_size
        both = self.matmul(x, f"/model/layers.{i}/mlp/gate_up_proj", narrow, 2 * wide)
        gate, up = ir.Value(name=f"gate_{i}"), ir.Value(name=f"up_{i}")
        self.nodes.append(ir.node("Split", [both], {"axis": -1, "num_outputs": 2}, outputs=[gate, up]))
        gated = self.op("Mul", [self.op("QuickGelu", [gate], alpha=1.0), up], "")
        return self.matmul(gated, f"/model/layers.{i}/mlp/down_proj", wide, narrow)

    def add_and_norm(self, x: ir.Value, update: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        """x + update, and that normalised: one node."""
        count = len(self.nodes)
        normed, total = ir.Value(name=f"normed_{count}"), ir.Value(name=f"sum_{count}")
        unused = [ir.Value(name=""), ir.Value(name="")]
        self.nodes.append(
            ir.node(
                "SkipSimplifiedLayerNormalization",
                [x, update, weight],
                {"epsilon": self.text.rms_norm_eps},
                domain=MS,
                outputs=[normed, *unused, total],
            )
        )
        return total, normed

    def matmul(self, x: ir.Value, path: str, inputs: int, outputs: int) -> ir.Value:
        """x times the bundle's weight of this path, repacked."""
        bits = 4 if self.weights[f"{path}/weight"].dtype == ir.DataType.INT4 else 8
        stored = self.array(f"{path}/weight", raw=bits == 4)
        scales = self.array(f"{path}/scale")
        codes = unpack_int4(stored, (inputs, outputs)) if bits == 4 else stored
        weight, scale = to_matmul_nbits(codes, scales, bits)
        operands = [self.constant(f"{path}/weight", weight), self.constant(f"{path}/scale", scale)]
        sizes: dict[str, Any] = {"K": inputs, "N": outputs, "bits": bits, "block_size": inputs // len(scales)}
        return self.op("MatMulNBits", [x, *operands], **sizes, accuracy_level=4)

    def norm_weight(self, i: int, part: str) -> ir.Value:
        name = f"/model/layers.{i}/{part}/norm/weight"
        return self.constant(name, self.array(name))

    def last_norm(self) -> ir.Value:
        return self.constant("/model/norm/weight", self.array("/model/norm/weight"))

    def array(self, name: str, *, raw: bool = False) -> NDArray[Any]:
        tensor = self.weights[name].const_value
        if tensor is None:
            raise ValueError(f"the decoder has no weight {name}; was it exported by another version?")
        return np.frombuffer(tensor.tobytes(), np.uint8) if raw else tensor.numpy()

    def cache(self, what: str, i: int, part: str) -> ir.Value:
        g = self.geometry
        return _value(f"{what}.{i}.{part}", FLOAT, (1, g.num_key_value_heads, g.context_length, g.head_dim))

    def op(self, kind: str, inputs: Sequence[ir.Value], domain: str = MS, **attributes: Any) -> ir.Value:
        value = ir.Value(name=f"{kind}_{len(self.nodes)}")
        self.nodes.append(ir.node(kind, inputs, attributes, domain=domain, outputs=[value]))
        return value

    def constant(self, name: str, data: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(data, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(data.shape), const_value=tensor
        )
        return self.initializers.setdefault(name, value)


def _value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
