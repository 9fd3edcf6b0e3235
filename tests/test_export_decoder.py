"""The decoder graph against transformers, on a random checkpoint, in all precisions and both forms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.contract import (
    ATTENTION_FORMS,
    PRECISIONS,
    AttentionForm,
    Geometry,
    Precision,
    decoder_graph,
)
from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.models import ModelSpec, load_spec
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from tests.decoder_runner import DecoderRunner, greedy, prefill

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402
from safecode_trt.export.decoder import write_decoder  # noqa: E402
from safecode_trt.export.export_config import ExportConfig, WeightConfig  # noqa: E402
from safecode_trt.export.package import geometry as geometry_of  # noqa: E402

PROMPT = np.array([1, 40, 77, 91, 120, 133, 60, 250, 18, 200, 31], np.int64)
OTHER = np.array([1, 99, 12], np.int64)
CAPACITY = 64
Graph = Callable[[Precision, AttentionForm], Path]


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Path) -> ModelSpec:
    return load_spec(tiny_checkpoint)


@pytest.fixture(scope="module")
def geometry(spec: ModelSpec) -> Geometry:
    return geometry_of(spec, ExportConfig(context_length=CAPACITY))


@pytest.fixture(scope="module")
def graph(
    tiny_checkpoint: Path, spec: ModelSpec, geometry: Geometry, tmp_path_factory: pytest.TempPathFactory
) -> Graph:
    """Writes each graph once."""
    folder = tmp_path_factory.mktemp("decoders")

    def write(precision: Precision, attention: AttentionForm) -> Path:
        path = folder / f"{precision}-{attention}.onnx"
        if not path.exists():
            checkpoint = Checkpoint(tiny_checkpoint)
            write_decoder(checkpoint, spec, geometry, path, precision=precision, attention=attention)
        return path

    return write


@pytest.fixture(scope="module")
def builder(tiny_checkpoint: Path, spec: ModelSpec, geometry: Geometry) -> FeedBuilder:
    text = spec.text
    table = Checkpoint(tiny_checkpoint).mapped(spec.weights.embed_tokens, (text.vocab_size, text.hidden_size))
    return FeedBuilder(text, table, geometry.context_length)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> tuple[np.ndarray, list[int]]:
    """transformers in fp32: logits behind the prompt, and 32 greedy tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.Idefics3ForConditionalGeneration.from_pretrained(
        tiny_checkpoint, dtype=torch.float32
    )
    tokens, first = PROMPT.tolist(), None
    with torch.no_grad():
        for _ in range(32):
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
            first = logits if first is None else first
            tokens.append(int(logits.argmax()))
    assert first is not None
    return first, tokens[len(PROMPT) :]


every_form = pytest.mark.parametrize("attention", ATTENTION_FORMS)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
# ONNX Runtime has no bfloat16 on the CPU.
every_runnable_precision = pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "bf16"])


@every_form
def test_first_logits_and_greedy_tokens_are_those_of_transformers(
    graph: Graph,
    geometry: Geometry,
    builder: FeedBuilder,
    expected: tuple[np.ndarray, list[int]],
    attention: AttentionForm,
) -> None:
    runner = DecoderRunner(graph("fp32", attention), geometry, "fp32")
    logits = prefill(runner, builder, KVCache(runner.allocate(1), rows=1), [PROMPT])
    assert np.abs(logits[0] - expected[0]).max() < 1e-4
    assert greedy(runner, builder, PROMPT, 32) == expected[1]
    assert len(set(expected[1])) > 8, "a reply that repeats itself tests little"


@every_form
@pytest.mark.parametrize(("precision", "limit"), [("fp16", 0.02), ("int8", 0.4), ("int4", 4.0)])
def test_other_precisions_stay_near(
    graph: Graph,
    geometry: Geometry,
    builder: FeedBuilder,
    expected: tuple[np.ndarray, list[int]],
    attention: AttentionForm,
    precision: Precision,
    limit: float,
) -> None:
    runner = DecoderRunner(graph(precision, attention), geometry, precision)
    logits = prefill(runner, builder, KVCache(runner.allocate(1), rows=1), [PROMPT])
    assert logits.dtype == np.float32
    assert np.abs(logits[0] - expected[0]).max() < limit


@every_form
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_ragged_rows_equal_single_rows(
    graph: Graph, geometry: Geometry, builder: FeedBuilder, attention: AttentionForm, precision: Precision
) -> None:
    runner = DecoderRunner(graph(precision, attention), geometry, precision)
    both = KVCache(runner.allocate(2), rows=2)
    together = [prefill(runner, builder, both, [PROMPT, OTHER])]
    for token in (17, 230):
        together.append(runner.decode(builder.step(token, both), both.memory))
        both.advance(np.ones(2, np.int64))
    for row, prompt in enumerate((PROMPT, OTHER)):
        alone = KVCache(runner.allocate(1), rows=1)
        single = [prefill(runner, builder, alone, [prompt])]
        for token in (17, 230):
            single.append(runner.decode(builder.step(token, alone), alone.memory))
            alone.advance(np.ones(1, np.int64))
        for got, want in zip(together, single, strict=True):
            assert np.allclose(got[row], want[0], atol=1e-4)


@every_runnable_precision
def test_both_forms_have_the_same_numbers(
    graph: Graph, geometry: Geometry, builder: FeedBuilder, precision: Precision
) -> None:
    found = []
    for attention in ATTENTION_FORMS:
        runner = DecoderRunner(graph(precision, attention), geometry, precision)
        cache = KVCache(runner.allocate(2), rows=2)
        found.append(prefill(runner, builder, cache, [PROMPT, OTHER]))
        found.append(runner.decode(builder.step(55, cache), cache.memory))
    limit = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.2, "int4": 0.4}[precision]
    assert np.abs(found[0] - found[2]).max() < limit
    assert np.abs(found[1] - found[3]).max() < limit


@every_form
@every_precision
def test_graph_is_valid_standard_and_as_promised(
    graph: Graph, geometry: Geometry, precision: Precision, attention: AttentionForm
) -> None:
    path = graph(precision, attention)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    spec = decoder_graph(geometry, precision)
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        found = [
            (
                value.name,
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]
        assert found == [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "/model/layers.0/self_attn/qkv_proj/MatMul" in names
    operators = {node.op_type for node in model.graph.node}
    assert "Slice" not in operators, "it would copy the visible keys of every layer in every step"
    if attention == "decomposed":
        assert not operators & {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter", "Swish"}
        assert model.opset_import[0].version <= 21


@every_precision
def test_weights_are_in_one_aligned_file(graph: Graph, precision: Precision) -> None:
    path = graph(precision, "portable")
    model = onnx.load(path, load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    assert {place["location"] for place in places} == {path.name + ".data"}
    for place in places:
        assert int(place["offset"]) % (4096 if int(place["length"]) >= 4096 else 64) == 0
    assert path.stat().st_size < 200_000


def test_sharded_and_single_checkpoints_make_the_same_decoder(
    graph: Graph, spec: ModelSpec, geometry: Geometry, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "sharded", seed=5, shard_bytes=100_000)
    path = tmp_path / "fp32-portable.onnx"
    write_decoder(Checkpoint(tmp_path / "sharded"), spec, geometry, path, precision="fp32")
    single = graph("fp32", "portable")
    assert path.read_bytes() == single.read_bytes()
    assert path.with_suffix(".onnx.data").read_bytes() == single.with_suffix(".onnx.data").read_bytes()


def test_quantisation_errors_are_reported(
    tiny_checkpoint: Path, spec: ModelSpec, geometry: Geometry, tmp_path: Path
) -> None:
    found = dict(
        write_decoder(
            Checkpoint(tiny_checkpoint), spec, geometry, tmp_path / "decoder.onnx", precision="int4"
        )
    )
    assert len(found) == 7 * geometry.num_hidden_layers + 1
    assert all(how.error is not None and 0.003 < how.error < 0.15 for how in found.values())
    head = found.pop(spec.weights.embed_tokens)
    assert (head.bits, head.block_size) == (8, 32)
    assert {(how.bits, how.block_size, how.symmetric, how.method) for how in found.values()} == {
        (4, 32, True, "round-to-nearest")
    }


def test_block_size_must_divide_the_sizes(
    tiny_checkpoint: Path, spec: ModelSpec, geometry: Geometry, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="block_size 128 does not divide"):
        write_decoder(
            Checkpoint(tiny_checkpoint),
            spec,
            geometry,
            tmp_path / "decoder.onnx",
            precision="int4",
            weights=WeightConfig(block_size=128),
        )


def test_values_beyond_float16_are_refused(spec: ModelSpec, geometry: Geometry, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "large", spread=1e5)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*beyond float16"):
        write_decoder(
            Checkpoint(tmp_path / "large"), spec, geometry, tmp_path / "decoder.onnx", precision="fp16"
        )


def test_writing_a_decoder_loads_no_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.export_config import ExportConfig
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.package import geometry
from safecode_trt.models import load_spec
folder = Path(sys.argv[1])
spec = load_spec(folder)
sizes = geometry(spec, ExportConfig())
write_decoder(Checkpoint(folder), spec, sizes, Path(sys.argv[2]), precision="int4")
print(sorted({"torch", "transformers", "onnxscript"} & set(sys.modules)))
"""
    arguments = [sys.executable, "-c", program, str(tiny_checkpoint), str(tmp_path / "decoder.onnx")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
