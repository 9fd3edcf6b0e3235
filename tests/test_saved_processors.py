"""Checkpoints as transformers 5 saves them: the image processor's settings stand in processor_config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safecode_trt.errors import CheckpointError
from safecode_trt.models import load_spec
from safecode_trt.models.spec import read_preprocessor
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints

transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

from safecode_trt.export import ExportConfig, export_bundle  # noqa: E402

OLD, NEW = "preprocessor_config.json", "processor_config.json"
# Two whose processors need no torchvision.
EXPORTED = ("idefics", "llava")


def without_settings(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(OLD, NEW)))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.model_type)
def test_settings_are_the_same_in_either_file(
    case: FamilyCase, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    source = made.checkpoint(case)
    folder = without_settings(source, tmp_path / "saved")
    processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
    settings = json.loads(processor.to_json_string())
    (folder / NEW).write_text(json.dumps({"image_processor": settings, "processor_class": "Some"}))
    assert load_spec(folder) == load_spec(source)
    (folder / OLD).write_text('{"image_mean": [9, 9, 9], "size": 9}')
    assert load_spec(folder) == load_spec(source), "transformers prefers the newer file"


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.model_type in EXPORTED], ids=lambda case: case.model_type
)
def test_a_saved_checkpoint_is_exported(case: FamilyCase, made: FamilyCheckpoints, tmp_path: Path) -> None:
    source = made.checkpoint(case)
    folder = without_settings(source, tmp_path / "saved")
    transformers.AutoProcessor.from_pretrained(source).save_pretrained(folder)
    assert not (folder / OLD).exists()
    bundle = export_bundle(folder, tmp_path / "bundle", config=ExportConfig(precision="fp32"))
    assert bundle.manifest.parity is not None and bundle.manifest.parity.passed
    assert load_spec(bundle.path) == load_spec(source)


def test_which_settings_are_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{OLD} is missing"):
        read_preprocessor(tmp_path)
    (tmp_path / OLD).write_text('{"size": 1}')
    (tmp_path / NEW).write_text('{"image_seq_len": 4}')
    assert read_preprocessor(tmp_path) == {"size": 1}
    (tmp_path / NEW).write_text('{"image_processor": 7}')
    with pytest.raises(CheckpointError, match=r"image_processor must be a JSON object, got 7"):
        read_preprocessor(tmp_path)
