"""int8 and int4 weights with activations in float16: what TensorRT's fused attention needs, and the CPU runs too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.contract import ATTENTION_FORMS, AttentionForm, Geometry, Precision, decoder_graph
from safecode_trt.engine import Engine
from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.models import ModelSpec, load_spec
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from tests.decoder_runner import DecoderRunner, prefill

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from safecode_trt.export import ExportConfig, export_bundle  # noqa: E402
from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402
from safecode_trt.export.decoder import write_decoder  # noqa: E402
from safecode_trt.export.package import geometry as geometry_of  # noqa: E402

PROMPT = np.array([1, 40, 77, 91, 120, 133, 60, 250, 18, 200, 31], np.int64)
quantised = pytest.mark.parametrize("precision", ["int8", "int4"])


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Path) -> ModelSpec:
    return load_spec(tiny_checkpoint)


@pytest.fixture(scope="module")
def geometry(spec: ModelSpec) -> Geometry:
    return geometry_of(spec, ExportConfig(context_length=64))


@quantised
@pytest.mark.parametrize("attention", ATTENTION_FORMS)
def test_the_logits_are_those_of_float32_activations(
    tiny_checkpoint: Path,
    spec: ModelSpec,
    geometry: Geometry,
    tmp_path: Path,
    precision: Precision,
    attention: AttentionForm,
) -> None:
    text, checkpoint = spec.text, Checkpoint(tiny_checkpoint)
    table = checkpoint.mapped(spec.weights.embed_tokens, (text.vocab_size, text.hidden_size))
    builder = FeedBuilder(text, table, geometry.context_length)
    found = {}
    for activations in ("fp32", "fp16"):
        path = tmp_path / f"{activations}.onnx"
        write_decoder(
            checkpoint,
            spec,
            geometry,
            path,
            precision=precision,
            attention=attention,
            activations=activations,
        )
        runner = DecoderRunner(path, geometry, precision, activations=activations)
        cache = KVCache(runner.allocate(1), rows=1)
        found[activations] = prefill(runner, builder, cache, [PROMPT])
    # Kernels for int8 activations round, and a value that float16 moves may be rounded to its neighbour.
    assert np.abs(found["fp32"] - found["fp16"]).max() < {"int8": 0.4, "int4": 0.6}[precision]
    assert np.corrcoef(found["fp32"][0], found["fp16"][0])[0, 1] > 0.99


@quantised
def test_everything_but_the_codes_is_float16(
    tiny_checkpoint: Path, spec: ModelSpec, geometry: Geometry, tmp_path: Path, precision: Precision
) -> None:
    path = tmp_path / "decoder.onnx"
    write_decoder(Checkpoint(tiny_checkpoint), spec, geometry, path, precision=precision, activations="fp16")
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path, load_external_data=False).graph
    types = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    assert "FLOAT" not in types.values()
    assert {kind for name, kind in types.items() if name.endswith("/scale")} == {"FLOAT16"}
    assert "FLOAT16" in types["/lm_head/scale"]
    promised = decoder_graph(geometry, precision, activations="fp16")
    assert {tensor.dtype for tensor in promised.inputs} == {"float16", "int64"}
    assert promised == decoder_graph(geometry, "fp16")


def test_a_bundle_answers_on_the_cpu_and_says_what_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = ExportConfig(precision="int4", activations="fp16")
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", config=config)
    manifest = bundle.manifest
    assert (manifest.precision, manifest.activations, manifest.vision_precision) == ("int4", "fp16", "fp16")
    assert manifest.parity is not None and manifest.parity.passed
    with Engine.open(bundle.path) as engine:
        assert engine.generate(
            "What is it?", image=Image.new("RGB", (40, 30), (200, 30, 30)), mode="plain"
        ).token_ids


@pytest.mark.parametrize(
    ("settings", "activations", "vision"),
    [
        ({}, "fp32", "fp32"),
        ({"precision": "int8", "activations": "fp16"}, "fp16", "fp16"),
        ({"activations": "fp16", "vision_precision": "int8"}, "fp16", "int8"),
        ({"precision": "fp16"}, "fp16", "fp16"),
        ({"precision": "fp16", "activations": "fp16"}, "fp16", "fp16"),
        ({"precision": "bf16"}, "bf16", "fp32"),
        ({"precision": "fp32", "vision_precision": "fp16"}, "fp32", "fp16"),
    ],
)
def test_what_follows_from_the_settings(settings: dict[str, Any], activations: str, vision: str) -> None:
    config = ExportConfig(**settings)
    assert (config.activation_precision, config.vision_weights) == (activations, vision)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp32", "activations": "fp16"}, "precision fp32 has activations of its own"),
        ({"precision": "bf16", "activations": "fp16"}, "precision bf16 has activations of its own"),
        ({"activations": "bf16"}, "activations must be one of fp32, fp16, got 'bf16'"),
        ({"activations": "fp8"}, "activations must be one of fp32, fp16, got 'fp8'"),
        (
            {"activations": "fp16", "vision_precision": "fp32"},
            "vision_precision fp32 needs activations in float32",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**settings)


def test_scales_beyond_float16_are_refused(spec: ModelSpec, geometry: Geometry, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "large", spread=1e9)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has values beyond float16"):
        write_decoder(
            Checkpoint(tmp_path / "large"),
            spec,
            geometry,
            tmp_path / "decoder.onnx",
            precision="int4",
            activations="fp16",
        )
