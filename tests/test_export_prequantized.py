"""Checkpoints that GPTQ and AWQ have quantised: repacked exactly, exported, and refused where they are not read."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from make_random_checkpoint import write_checkpoint
from safecode_trt.errors import CheckpointError, ConfigError, SafeCodeError
from safecode_trt.export import ExportConfig, export_bundle
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.package import geometry
from safecode_trt.export.prequantized import Prequantized, float_checkpoint
from safecode_trt.export.quantize import dequantize, unpack_int4
from safecode_trt.manifest import DECODER, Method, Quantization
from safecode_trt.models import load_spec
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from tests.decoder_runner import DecoderRunner, prefill
from tests.packed_checkpoint import Codes, Packing, draw, pack, write_packed

ir = pytest.importorskip("onnx_ir")
GPTQ, AWQ = Packing(), Packing(method="awq")
NAME = "layer.weight"
PROMPT = np.array([1, 40, 77, 91, 120, 133, 60, 250, 18, 200, 31], np.int64)


def store(folder: Path, codes: Codes, packing: Packing) -> Prequantized:
    """A checkpoint of one layer."""
    folder.mkdir(exist_ok=True)
    tensors = {f"layer.{part}": value for part, value in pack(codes, packing).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": packing.config}))
    found = Prequantized.of(Checkpoint(folder))
    assert found is not None and NAME in found and "other.weight" not in found
    return found


@pytest.mark.parametrize(
    ("packing", "inputs", "block"),
    [
        (GPTQ, 64, 32),
        (replace(GPTQ, version=2), 64, 32),
        (replace(GPTQ, tables=False), 64, 32),
        (replace(GPTQ, symmetric=True), 64, 32),
        (replace(GPTQ, group_size=128), 256, 128),
        (replace(GPTQ, group_size=128), 160, 32),  # the last group is short
        (replace(GPTQ, group_size=-1), 192, 64),
        (replace(GPTQ, group_size=-1), 1024, 128),
        (AWQ, 64, 32),
        (replace(AWQ, symmetric=True), 64, 32),
        (replace(AWQ, group_size=64), 256, 64),
    ],
    ids=str,
)
def test_weights_are_exactly_the_formats(tmp_path: Path, packing: Packing, inputs: int, block: int) -> None:
    codes = draw(24, inputs, packing, seed=inputs)
    found = store(tmp_path, codes, packing).read(NAME, (24, inputs))
    assert np.array_equal(dequantize(found), codes.weight)
    assert found.how.block_size == block and found.how.method == packing.method
    assert found.how.symmetric == packing.symmetric == (found.zero_points is None)
    assert found.scales.shape == (inputs // block, 24)


def test_all_codes_and_all_zero_points(tmp_path: Path) -> None:
    codes = replace(
        draw(16, 32, GPTQ, seed=0),
        codes=np.arange(32 * 16).reshape(32, 16) % 16,
        zeros=np.arange(16).reshape(1, 16),
    )
    for packing in (GPTQ, replace(GPTQ, version=2), AWQ):
        found = store(tmp_path, codes, packing).read(NAME, (16, 32))
        assert np.array_equal(dequantize(found), codes.weight)


def test_groups_out_of_order_are_refused(tmp_path: Path) -> None:
    codes = draw(16, 64, GPTQ, seed=0)
    shuffled = store(tmp_path, replace(codes, groups=codes.groups[::-1].copy()), GPTQ)
    with pytest.raises(CheckpointError, match=r"layer\.g_idx .* desc_act=false"):
        shuffled.read(NAME, (16, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'; expected 'gptq' or 'awq'"),
        ({"bits": 3}, "3 bits; only 4 are read"),
        ({"bits": 8}, "8 bits; only 4 are read"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'; expected 'gptq' or 'gptq_v2'"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'; expected 'gemm'"),
        ({"group_size": 0}, "group_size 0; expected a positive number or -1"),
        ({"group_size": "32"}, "group_size '32'; expected"),
    ],
)
def test_what_is_not_read_is_one_clear_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store(tmp_path, draw(16, 64, GPTQ, seed=0), GPTQ)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": GPTQ.config | change}))
    with pytest.raises(CheckpointError, match=message) as caught:
        Prequantized.of(Checkpoint(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tensor_of_another_type_or_shape_is_refused(tmp_path: Path) -> None:
    found = store(tmp_path, draw(16, 64, GPTQ, seed=0), GPTQ)
    with pytest.raises(CheckpointError, match=r"qweight has shape \[8, 16\].* \[8, 24\]"):
        found.read(NAME, (24, 64))
    with pytest.raises(CheckpointError, match="gptq packs multiples of 8"):
        found.read(NAME, (12, 64))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"layer.qzeros": tensors["layer.qzeros"].astype(np.float32)}, tmp_path / "model.safetensors"
    )
    broken = Prequantized.of(Checkpoint(tmp_path))
    assert broken is not None
    with pytest.raises(CheckpointError, match="qzeros has type F32; expected I32"):
        broken.read(NAME, (16, 64))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32, the only float type that numpy and safetensors share with every test here."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_checkpoint(folder, dtype="F32")
    return folder


@pytest.mark.parametrize("packing", [GPTQ, AWQ], ids=str)
def test_export_does_what_the_weights_do_in_transformers(
    base: Path, tmp_path: Path, packing: Packing
) -> None:
    pytest.importorskip("torch")
    write_packed(base, tmp_path / "packed", tmp_path / "floats", packing)
    bundle = export_bundle(tmp_path / "packed", tmp_path / "bundle", config=ExportConfig(precision="int4"))
    parity = bundle.manifest.parity
    # What differs is the head in int8, and that ONNX Runtime rounds the activations to int8.
    assert parity is not None and parity.decoder.max_rel_difference < 0.1
    how = bundle.manifest.quantization["model.text_model.layers.0.mlp.up_proj.weight"]
    assert how == Quantization(bits=4, block_size=32, symmetric=False, method=cast(Method, packing.method))
    reference = reference_logits(tmp_path / "floats", PROMPT)
    runner = DecoderRunner(bundle.file(DECODER), bundle.manifest.geometry, "int4")
    spec = load_spec(tmp_path / "packed")
    table = Checkpoint(tmp_path / "packed").mapped(spec.weights.embed_tokens, (352, 64))
    builder = FeedBuilder(spec.text, table, 256)
    (found,) = prefill(runner, builder, KVCache(runner.allocate(1), rows=1), [PROMPT])
    assert np.abs(found - reference).max() < 0.05 * np.abs(reference).max()


def reference_logits(folder: Path, prompt: np.ndarray) -> np.ndarray:
    """transformers in float32, without the code that the export compares with."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1].numpy()
    return logits


@pytest.mark.parametrize("packing", [GPTQ, AWQ, replace(GPTQ, symmetric=True, group_size=64)], ids=str)
def test_graph_has_exactly_the_packed_weights(base: Path, tmp_path: Path, packing: Packing) -> None:
    """Side by side with one that is not packed, and so is quantised to be like its neighbours."""
    write_packed(base, tmp_path / "packed", tmp_path / "floats", packing, keep="k_proj")
    spec, path = load_spec(tmp_path / "packed"), tmp_path / "decoder.onnx"
    sizes = geometry(spec, ExportConfig())
    hows = write_decoder(Checkpoint(tmp_path / "packed"), spec, sizes, path, precision="int4")
    originals = load_file(tmp_path / "floats" / "model.safetensors")
    weights = ir.load(path).graph.initializers
    for layer in range(2):
        prefix, stem = f"/model/layers.{layer}", f"model.text_model.layers.{layer}."
        rows = [originals[f"{stem}mlp.{name}.weight"] for name in ("gate_proj", "up_proj")]
        assert np.array_equal(restore(weights, f"{prefix}/mlp/gate_up_proj"), np.concatenate(rows))
        down = originals[f"{stem}mlp.down_proj.weight"]
        assert np.array_equal(restore(weights, f"{prefix}/mlp/down_proj"), down)
        found = restore(weights, f"{prefix}/self_attn/qkv_proj")
        query, key, value = (originals[f"{stem}self_attn.{name}_proj.weight"] for name in "qkv")
        assert np.array_equal(found[: len(query)], query) and np.array_equal(found[-len(value) :], value)
        lost = np.linalg.norm(found[len(query) : -len(value)] - key) / np.linalg.norm(key)
        how = hows[f"{stem}self_attn.k_proj.weight"]
        assert 0 < lost < 0.15 and how.error == pytest.approx(lost, rel=1e-3)
        assert how.method == "round-to-nearest" and how.block_size == packing.group_size


def restore(weights: Any, path: str) -> np.ndarray:
    """The weight (N, K) of a DequantizeLinear in blocks."""
    stored, scales = weights[f"{path}/weight"].const_value, weights[f"{path}/scale"].const_value.numpy()
    codes = unpack_int4(np.frombuffer(stored.tobytes(), np.uint8), tuple(stored.shape)).astype(np.float32)
    if f"{path}/zero_point" in weights:
        zeros = weights[f"{path}/zero_point"].const_value
        points = unpack_int4(np.frombuffer(zeros.tobytes(), np.uint8), tuple(zeros.shape))
        codes -= np.repeat(points, len(codes) // len(scales), axis=0)
    return (codes * np.repeat(scales, len(codes) // len(scales), axis=0)).T


def test_floats_for_the_comparison_are_the_same_weights(base: Path, tmp_path: Path) -> None:
    write_packed(base, tmp_path / "packed", tmp_path / "floats", AWQ)
    originals = load_file(tmp_path / "floats" / "model.safetensors")
    with float_checkpoint(tmp_path / "packed", tmp_path) as folder:
        assert folder.parent == tmp_path
        found = Checkpoint(folder)
        assert set(found.names("")) == set(originals)
        for name, tensor in originals.items():
            assert np.array_equal(found.get(name, tensor.shape), tensor), name
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not folder.exists()
    with float_checkpoint(base) as folder:
        assert folder == base


@pytest.mark.parametrize(
    ("target", "failure", "message"),
    [
        ("shutil.disk_usage", lambda place: SimpleNamespace(free=1000), "GB free; fix: make room there"),
        ("safecode_trt.export.prequantized.write_tensors", None, "cannot take them: No space left on device"),
    ],
)
def test_no_room_for_the_floats_is_said_as_it_is(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, failure: Any, message: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_packed(base, tmp_path / "packed", tmp_path / "floats", GPTQ)
    monkeypatch.setattr(target, failure or full)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(tmp_path / "packed", tmp_path / "out" / "bundle", config=ExportConfig())
    assert "--no-verify" in str(caught.value) and str(tmp_path / "out") in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


def test_another_precision_is_refused(base: Path, tmp_path: Path) -> None:
    write_packed(base, tmp_path / "packed", tmp_path / "floats", GPTQ)
    with pytest.raises(ConfigError, match=r"precision must be int4 for .* 4 bits with gptq; got fp32"):
        export_bundle(tmp_path / "packed", tmp_path / "out", config=ExportConfig(precision="fp32"))
    assert not (tmp_path / "out").exists()


def test_a_broken_table_leaves_nothing(base: Path, tmp_path: Path) -> None:
    write_packed(base, tmp_path / "packed", tmp_path / "floats", GPTQ)
    path = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.text_model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SafeCodeError, match=r"no tensor model\.text_model\.layers\.1\.mlp\.up_proj\.scales"):
        export_bundle(tmp_path / "packed", tmp_path / "out", config=ExportConfig(verify=False))
    assert not (tmp_path / "out").exists()
