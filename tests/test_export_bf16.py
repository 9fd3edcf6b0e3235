"""bf16 decoders, which no CPU runs: their weights read back, and the same graph with its numbers widened to float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.contract import ATTENTION_FORMS, AttentionForm, Precision
from safecode_trt.export import ExportConfig
from safecode_trt.models import load_spec
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from tests.decoder_runner import DecoderRunner, prefill

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402
from safecode_trt.export.decoder import write_decoder  # noqa: E402
from safecode_trt.export.package import geometry  # noqa: E402

CAPACITY = 64
SIZES = ExportConfig(context_length=CAPACITY)
PROMPT = np.random.Generator(np.random.PCG64(3)).integers(60, 340, 40)
BFLOAT16, FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
LAYER = "model.text_model.layers.1."
# In the graph, and what of the checkpoint stands in it side by side.
WEIGHTS = {
    "/model/layers.1/mlp/gate_up_proj/weight": ("mlp.gate_proj", "mlp.up_proj"),
    "/model/layers.1/self_attn/o_proj/weight": ("self_attn.o_proj",),
    "/model/layers.1/self_attn/norm/weight": ("input_layernorm",),
}


def write(checkpoint: Path, path: Path, precision: Precision, attention: AttentionForm = "portable") -> Path:
    spec = load_spec(checkpoint)
    weights = Checkpoint(checkpoint, spec.renames, spec.joins)
    write_decoder(weights, spec, geometry(spec, SIZES), path, precision=precision, attention=attention)
    return path


def bits(path: Path) -> dict[str, np.ndarray]:
    """The bfloat16 weights of a graph, as 16-bit words."""
    model = onnx.load(path)
    found = {x.name: x for x in model.graph.initializer}
    assert {found[name].data_type for name in WEIGHTS} == {BFLOAT16}
    return {name: onnx.numpy_helper.to_array(found[name]).view(np.uint16) for name in WEIGHTS}


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_weights_are_rounded_as_torch_rounds(dtype: Any, tmp_path: Path) -> None:
    """Those of a bfloat16 checkpoint are the same bits."""
    write_checkpoint(tmp_path, seed=5, dtype=dtype)
    checkpoint, found = Checkpoint(tmp_path), bits(write(tmp_path, tmp_path / "decoder.onnx", "bf16"))
    for name, parts in WEIGHTS.items():
        tensors = [f"{LAYER}{part}.weight" for part in parts]
        rows = np.concatenate([checkpoint.get(tensor, checkpoint.shape(tensor)) for tensor in tensors])
        rounded = torch.from_numpy(rows).bfloat16()
        assert np.array_equal(found[name], rounded.view(torch.int16).numpy().view(np.uint16).T)
        assert torch.equal(rounded.float(), torch.from_numpy(rows)) == (dtype == "BF16")


def widened(path: Path) -> Path:
    """The graph with float32 wherever it has bfloat16: the same numbers, in a type that the CPU has."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == BFLOAT16:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BFLOAT16:
                attribute.i = FLOAT
            assert attribute.t.data_type != BFLOAT16
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    target = path.with_name(f"wide-{path.name}")
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("attention", ATTENTION_FORMS)
def test_the_graph_computes_what_the_float32_graph_does(
    attention: AttentionForm, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The checkpoint is in bfloat16, so nothing is rounded; fp32 is held against transformers elsewhere."""
    spec = load_spec(tiny_checkpoint)
    sizes, shape = geometry(spec, SIZES), (spec.text.vocab_size, spec.text.hidden_size)
    builder = FeedBuilder(
        spec.text, Checkpoint(tiny_checkpoint).mapped(spec.weights.embed_tokens, shape), CAPACITY
    )
    paths = (
        write(tiny_checkpoint, tmp_path / "fp32.onnx", "fp32", attention),
        widened(write(tiny_checkpoint, tmp_path / "bf16.onnx", "bf16", attention)),
    )
    found = []
    for path in paths:
        runner = DecoderRunner(path, sizes, "fp32")
        cache = KVCache(runner.allocate(1), rows=1)
        found.append(prefill(runner, builder, cache, [PROMPT]))
        cache.require(1)
        found.append(runner.decode(builder.step(17, cache), cache.memory))
    np.testing.assert_allclose(found[0], found[2], atol=1e-4)
    np.testing.assert_allclose(found[1], found[3], atol=1e-4)
