"""From checkpoint to bundle: what is in it, and that a failure is one clear error and leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.engine import Engine
from safecode_trt.errors import BundleError, CheckpointError, ConfigError, SafeCodeError
from safecode_trt.export import ExportConfig, export_bundle
from safecode_trt.export.package import special_tokens
from safecode_trt.export.parity import require_passed
from safecode_trt.manifest import EMBEDDINGS
from safecode_trt.models import load_spec
from safecode_trt.parity_report import GraphParity, Parity
from safecode_trt.tensors import map_tensors

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

FAST = ExportConfig(precision="fp32", verify=False)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_bundle_is_sound_and_says_what_it_is(tiny_checkpoint: Path, tiny_bundle: Bundle) -> None:
    manifest = Bundle.open(tiny_bundle.path, check_hashes=True).manifest
    assert manifest == tiny_bundle.manifest
    assert (manifest.model_type, manifest.precision) == ("idefics3", "fp32")
    assert manifest.geometry.context_length == 256
    assert manifest.special_tokens.eos_token_ids == (2,)
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert manifest.parity.decoder.max_abs_difference < 1e-4
    assert (manifest.parity.top1_agreement, manifest.parity.greedy_agreement) == (1.0, 1.0)
    assert {"onnx-ir", "torch", "transformers"} <= set(manifest.tools)
    in_folder = {
        p.relative_to(tiny_bundle.path).as_posix() for p in tiny_bundle.path.rglob("*") if p.is_file()
    }
    assert in_folder == {*manifest.files, "bundle.json"}
    for name in ("tokenizer.json", "config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert tiny_bundle.file(name).read_bytes() == (tiny_checkpoint / name).read_bytes()


def test_embeddings_keep_the_checkpoints_type(tiny_checkpoint: Path, tiny_bundle: Bundle) -> None:
    table = map_tensors(tiny_bundle.file(EMBEDDINGS))["embed_tokens"]
    name = load_spec(tiny_checkpoint).weights.embed_tokens
    original = map_tensors(tiny_checkpoint / "model.safetensors")[name]
    assert table.dtype == "BF16"
    assert np.array_equal(table.data, original.data)


def test_bundle_answers(tiny_bundle: Bundle) -> None:
    from PIL import Image

    engine = Engine.open(tiny_bundle.path)
    reply = engine.generate("What is it?", image=Image.new("RGB", (40, 30), (200, 30, 30)), mode="plain")
    assert reply.token_ids


def test_steps_are_reported_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []

    def stop(step: str, done: int, total: int) -> None:
        seen.append((step, done, total))
        if step == "embeddings":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(folder, folder.with_name("out"), config=FAST, progress=stop)
    assert list(dict.fromkeys(step for step, _, _ in seen)) == ["settings", "decoder", "embeddings"]
    assert ("decoder", 3, 3) in seen
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"], "an interruption leaves nothing"


def _edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return damage


def _rename_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.1.mlp.up_proj", b"layers.1.mlp.xx_proj"))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_rename_tensor, r"no tensor model\.text_model\.layers\.1\.mlp\.up_proj\.weight"),
        (_truncate, "truncated"),
        (
            _edit("config.json", lambda c: c["text_config"].update(intermediate_size=161)),
            r"mlp\.gate_proj\.weight has shape \[160, 64\], but config.json makes it \[161, 64\]",
        ),
        (
            _edit("config.json", lambda c: c.update(model_type="parrot")),
            "model_type 'parrot' is not supported",
        ),
        (_edit("generation_config.json", lambda c: c.update(eos_token_id=9999)), "token id 9999"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "chat_template"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_error(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(SafeCodeError, match=message) as caught:
        export_bundle(folder, folder.with_name("out"), config=FAST)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_too_long_a_context_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="context_length is 257, but the model's max_position_embeddings is 256"
    ):
        export_bundle(folder, folder.with_name("out"), config=replace(FAST, context_length=257))


def test_an_existing_output_is_not_touched(folder: Path) -> None:
    target = folder.with_name("out")
    target.mkdir()
    (target / "note.txt").write_text("mine")
    with pytest.raises(BundleError, match="exists"):
        export_bundle(folder, target, config=FAST)
    with pytest.raises(BundleError, match="is not a bundle"):
        export_bundle(folder, target, config=replace(FAST, overwrite=True))
    assert (target / "note.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir(mode=0o555)
    with pytest.raises(BundleError, match="cannot be written"):
        export_bundle(folder, place / "out", config=FAST)


def test_an_output_below_a_file_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        export_bundle(folder, folder / "config.json" / "out", config=FAST)


def test_what_cannot_be_read_is_not_said_of_the_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path == folder / "tokenizer_config.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be read: Input/output error"):
        export_bundle(folder, folder.with_name("out"), config=FAST)


def test_what_transformers_cannot_read_is_not_said_of_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError("there is no file that it wants\nand more")

    monkeypatch.setattr("safecode_trt.export.reference_model.TransformersModel", broken)
    with pytest.raises(
        CheckpointError, match=r"transformers cannot read .*: there is no file that it wants$"
    ):
        export_bundle(folder, folder.with_name("out"), config=replace(FAST, verify=True))


def test_end_tokens_may_be_several(folder: Path) -> None:
    _edit("generation_config.json", lambda c: c.update(eos_token_id=[2, 7]))(folder)
    assert special_tokens(folder, load_spec(folder)).eos_token_ids == (2, 7)


def test_a_checkpoints_own_generation_settings_are_no_part_of_the_comparison(folder: Path) -> None:
    _edit("generation_config.json", lambda c: c.update(repetition_penalty=1.5))(folder)
    bundle = export_bundle(folder, folder.with_name("out"), config=ExportConfig(precision="fp32"))
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.passed and bundle.manifest.parity.greedy_agreement == 1.0


def test_without_an_end_token_there_is_no_bundle(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    _edit("config.json", lambda c: (c.pop("eos_token_id"), c["text_config"].pop("eos_token_id")))(folder)
    with pytest.raises(CheckpointError, match="eos_token_id"):
        special_tokens(folder, load_spec(folder))


def test_a_comparison_that_fails_says_by_how_much() -> None:
    graph = GraphParity(max_abs_difference=3.0, max_rel_difference=0.5)
    parity = Parity(
        probes=4,
        vision_encoder=graph,
        decoder=graph,
        top1_agreement=0.2,
        top1_within_noise=0.25,
        logit_noise=0.3,
        greedy_agreement=0.0,
        passed=False,
    )
    with pytest.raises(
        CheckpointError, match=r"near ties 0\.250 \(expected at least 0\.99\), noise of the logits 0\.3 "
    ):
        require_passed(parity, "int8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int2"}, "precision must be one of"),
        ({"attention": "flash"}, "attention must be one of"),
        ({"context_length": 0}, "context_length must be at least 1"),
        ({"vision_precision": "int4"}, "vision_precision must be one of"),
        ({"precision": "fp16", "vision_precision": "fp32"}, "fp32 needs activations in float32"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**settings)


@pytest.mark.slow
def test_a_wrong_graph_does_not_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison must be able to fail: without the residual of the last layer nothing fits."""
    from safecode_trt.export.layers import LayerWriter

    monkeypatch.setattr(LayerWriter, "mlp", lambda self, x, layer, path: x)
    with pytest.raises(CheckpointError, match="differ from transformers"):
        export_bundle(folder, folder.with_name("out"), config=ExportConfig(precision="int8"))
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
