"""The settings of quantised weights in the decoder's graph, and that ONNX Runtime fuses every form of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.contract import Precision
from safecode_trt.errors import BackendError, ConfigError
from safecode_trt.export import ExportConfig, WeightConfig, export_bundle
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.export_config import parse_block_size
from safecode_trt.export.package import geometry
from safecode_trt.manifest import REFERENCE, Quantization
from safecode_trt.models import load_spec
from safecode_trt.runtime.backends import open_session
from safecode_trt.tensors import map_tensors
from tests.cli_runner import call, fails

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
BODY = Quantization(bits=4, block_size=32)
HEAD = Quantization(bits=8, block_size=32)


def write(model: Path, path: Path, precision: Precision, config: WeightConfig) -> list[Quantization]:
    """Writes the decoder; how q_proj of the first layer and the head were quantised, without the errors."""
    spec = load_spec(model)
    sizes = geometry(spec, ExportConfig())
    found = write_decoder(Checkpoint(model), spec, sizes, path, precision=precision, weights=config)
    assert all(how.error is not None and 0 < how.error < 0.15 for how in found.values())
    names = ("model.text_model.layers.0.self_attn.q_proj.weight", spec.weights.embed_tokens)
    return [replace(found[name], error=None) for name in names]


def optimised(path: Path) -> Any:
    """The graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("optimised.onnx")).graph


@pytest.mark.parametrize(
    ("precision", "config", "body", "head"),
    [
        ("int4", WeightConfig(), BODY, HEAD),
        ("int4", WeightConfig(block_size=16), replace(BODY, block_size=16), replace(HEAD, block_size=16)),
        ("int4", WeightConfig(lm_head="int4"), BODY, BODY),
        ("int4", WeightConfig(scale_search=True), replace(BODY, method="scale-search"), HEAD),
        (
            "int4",
            WeightConfig(asymmetric=True),
            replace(BODY, symmetric=False),
            replace(HEAD, symmetric=False),
        ),
        (
            "int4",
            WeightConfig(asymmetric=True, scale_search=True, lm_head="int4"),
            replace(BODY, symmetric=False, method="scale-search"),
            replace(BODY, symmetric=False, method="scale-search"),
        ),
        ("int8", WeightConfig(), replace(HEAD, block_size=None), replace(HEAD, block_size=None)),
        (
            "int8",
            WeightConfig(block_size="channel"),
            replace(HEAD, block_size=None),
            replace(HEAD, block_size=None),
        ),
        ("int8", WeightConfig(block_size=32), HEAD, HEAD),
        (
            "int8",
            WeightConfig(asymmetric=True),
            replace(HEAD, block_size=None, symmetric=False),
            replace(HEAD, block_size=None, symmetric=False),
        ),
    ],
    ids=str,
)
def test_every_form_is_fused(
    tiny_checkpoint: Path,
    tmp_path: Path,
    precision: Precision,
    config: WeightConfig,
    body: Quantization,
    head: Quantization,
) -> None:
    path = tmp_path / "decoder.onnx"
    assert write(tiny_checkpoint, path, precision, config) == [body, head]
    onnx.checker.check_model(str(path), full_check=True)
    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert kinds.count("DequantizeLinear") == 2 * 4 + 1
    fused = [node for node in optimised(path).node if node.op_type == "MatMulNBits"]
    assert len(fused) == 2 * 4 + 1, "every product is one node, which reads the codes"
    bits = [next(attribute.i for attribute in node.attribute if attribute.name == "bits") for node in fused]
    assert bits == [body.bits] * 8 + [head.bits]
    assert {len(node.input) for node in fused} == {4 if config.asymmetric else 3}


def test_the_check_of_fusing_can_fail(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The check above can fail: without the optimiser nothing is fused."""
    path = tmp_path / "decoder.onnx"
    write(tiny_checkpoint, path, "int4", WeightConfig())
    assert "MatMulNBits" not in {
        node.op_type for node in onnx.load(path, load_external_data=False).graph.node
    }


@pytest.mark.parametrize(
    ("settings", "precision", "message"),
    [
        ({"block_size": 48}, "int4", "block_size must be a power of two from 16 on, got 48"),
        ({"block_size": "row"}, "int4", "block_size must be a number or 'channel', got 'row'"),
        ({"block_size": "channel"}, "int4", "'channel' is too coarse for int4"),
        ({"lm_head": "fp8"}, "int4", "lm_head must be one of int8, int4, got 'fp8'"),
        ({"lm_head": "int4"}, "int8", "lm_head int4 needs precision int4"),
        ({"scale_search": True}, "int8", "scale_search finds nothing better in int8"),
        ({"asymmetric": True}, "fp32", "precision fp32 quantises nothing"),
        ({"scale_search": True}, "bf16", "precision bf16 quantises nothing"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], precision: Precision, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(precision=precision, weights=WeightConfig(**settings))


def test_block_sizes_of_a_command_line() -> None:
    assert [parse_block_size(text) for text in (None, "channel", "64")] == [None, "channel", 64]
    for text in ("", "-32", "3.5", "³", "row"):
        with pytest.raises(ConfigError, match=re.escape(repr(text))):
            parse_block_size(text)


def test_export_with_every_option(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """From the command line to what `inspect` says, compared with transformers on the way."""
    target = tmp_path / "bundle"
    options = ("--asymmetric", "--scale-search", "--lm-head", "int4", "--vision-precision", "int8")
    paths = ("--model", tiny_checkpoint, "--output", target, "--block-size", "16")
    result = call("export", *paths, *options)
    assert result.exit_code == 0, result.stderr
    manifest = Bundle.open(target, check_hashes=True).manifest
    assert manifest.parity is not None and manifest.parity.passed
    assert (manifest.precision, manifest.vision_precision) == ("int4", "int8")
    decoder = [how for name, how in manifest.quantization.items() if not name.startswith("vision_encoder/")]
    assert len(decoder) == 15
    assert {(how.bits, how.block_size, how.symmetric, how.method) for how in decoder} == {
        (4, 16, False, "scale-search")
    }
    shown = " ".join(call("inspect", target).stdout.split())
    assert "15 tensors: 4 bits, blocks of 16, asymmetric, scale-search, mean relative error 0.0" in shown
    assert "5 tensors: 8 bits, one scale per output, symmetric, round-to-nearest" in shown
    assert "vision encoder int8" in shown


def test_bf16_needs_a_gpu_and_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The bundle is written and sound; the CPU opens it with one clear error."""
    target = tmp_path / "bundle"
    paths = ("--model", tiny_checkpoint, "--output", target, "--precision", "bf16")
    fails(call("export", *paths), 2, "fix: pass --no-verify, and run the bundle on a GPU backend")
    assert not target.exists()
    bundle = export_bundle(tiny_checkpoint, target, config=ExportConfig(precision="bf16", verify=False))
    assert {tensor.dtype for tensor in bundle.manifest.graphs["onnx/decoder.onnx"].inputs} == {
        "bfloat16",
        "int64",
    }
    assert np.isfinite(map_tensors(bundle.file(REFERENCE))["image_features"].data).all()
    with pytest.raises(BackendError, match="has a bf16 decoder, for which ONNX Runtime's CPU provider"):
        open_session(bundle, RuntimeConfig())
