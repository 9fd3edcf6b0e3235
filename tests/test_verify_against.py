"""verify --against: the bundle's own files are compared, and a checkpoint with other settings is another one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle, write_manifest
from safecode_trt.manifest import EMBEDDINGS
from safecode_trt.tensors import map_tensors
from tests.cli_runner import call, fails

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from safecode_trt.export.embeddings import write_tensors
from safecode_trt.export.package import bundle_files


def test_the_same_checkpoint(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    result = call("verify", tiny_bundle.path, "--against", tiny_checkpoint)
    assert result.exit_code == 0, result.stderr
    assert "top-1 100.0%" in result.stdout


@pytest.mark.parametrize(
    "name", ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_checkpoint_with_other_settings(
    tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    with (folder / name).open("a") as file:
        file.write("\n")
    fails(
        call("verify", tiny_bundle.path, "--against", folder),
        1,
        "was made of weights and settings with SHA-256",
    )


def test_embeddings_are_the_bundles(tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As an export with a mistake would write them: the hashes are right."""
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    table = map_tensors(folder / EMBEDDINGS)["embed_tokens"]
    write_tensors(folder / EMBEDDINGS, {"embed_tokens": (table.data[::-1].copy(), table.dtype)})
    files = {name: entry for name, entry in bundle_files(folder).items() if name != "bundle.json"}
    write_manifest(folder, replace(tiny_bundle.manifest, files=files))
    fails(call("verify", folder, "--against", tiny_checkpoint), 1, "graphs differ from transformers")


def test_prompts_are_the_bundles(tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What the checkpoint's template says does not matter to the comparison, once its hash is taken."""
    from safecode_trt.config import RuntimeConfig
    from safecode_trt.export.parity import verify_session
    from safecode_trt.runtime.backends import open_session

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (folder / "chat_template.jinja").write_text("{{ broken")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<none>"}))
    session = open_session(tiny_bundle, RuntimeConfig())
    try:
        parity = verify_session(session, tiny_bundle, folder, lambda step, done, total: None)
    finally:
        session.close()
    assert parity.passed and parity.probes == 4
