"""export from the command line: what is wrong is one line, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli_runner import call, fails
from tests.null_bundle import DEMO, write_null_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


def export(output: Path, model: Path = DEMO) -> Result:
    return call("export", "--model", model, "--output", output)


def test_export_of_nothing(tmp_path: Path) -> None:
    fails(export(tmp_path / "out", tmp_path / "nowhere"), 1, "nowhere")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "missing", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"]
)
def test_export_of_half_a_checkpoint(tmp_path: Path, missing: str) -> None:
    shutil.copytree(DEMO, tmp_path / "half", ignore=shutil.ignore_patterns(missing))
    fails(export(tmp_path / "out", tmp_path / "half"), 1, missing.split(".")[0])
    assert os.listdir(tmp_path) == ["half"]


def test_export_over_what_is_there(bundle: Path) -> None:
    before = sorted(bundle.rglob("*"))
    fails(export(bundle), 1, "exists; fix: pass --overwrite to replace it")
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "cannot be written: No space left on device",
        ),
        (MemoryError(), 1, "MemoryError"),
    ],
)
@pytest.mark.parametrize("step", ["decoder.write_decoder", "embeddings.write_embeddings"])
def test_a_broken_off_export_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    message: str,
    step: str,
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(f"safecode_trt.export.{step}", broken)
    result = export(tmp_path / "out")
    assert result.exit_code == code and message in result.stderr and result.stdout == ""
    assert len(result.stderr.split("\n")) <= 3 and os.listdir(tmp_path) == []


def test_export_onto_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    fails(export(tmp_path / "out"), 1, "cannot be written: Read-only file system")


def test_the_help_names_the_defaults() -> None:
    pytest.importorskip("onnx_ir")
    from safecode_trt.export.export_config import DEFAULT_CONTEXT_LENGTH, ExportConfig

    text = " ".join(call("export", "--help").stdout.split())
    assert f"by default the model's own, at most {DEFAULT_CONTEXT_LENGTH}" in text
    assert ExportConfig(precision="int4", activations="fp16").vision_weights == "fp16"
    assert "by default fp16 with float16 activations, else fp32" in text
    built = " ".join(call("build", "--help").stdout.split())
    assert "by default as it sees fit" in built and "by default all that the GPU has" in built
