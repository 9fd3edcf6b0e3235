"""LLaVA, LLaVA-NeXT and InternVL off the beaten track: other towers and layers, older names, a head of its own."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.embeddings import write_tensors
from safecode_trt.models import load_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Names that checkpoints on the hub have, by the order in which older versions of transformers wrote them.
OLD_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.", ""),
)


def checkpoint(folder: Path, family: str, preprocessor: dict[str, Any] | None = None, **changes: Any) -> Path:
    write_checkpoint(folder, family, dtype="F32", changes=changes)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (preprocessor or {})))
    return folder


def vision_difference(folder: Path, family: str) -> float:
    """Between our module's features of two views and those of transformers."""
    spec = load_spec(folder)
    ours = importlib.import_module(f"safecode_trt.export.families.{family}")
    size = int(spec.vision_graph("float32").inputs[0].shape[-1])
    draw = np.random.Generator(np.random.PCG64(0))
    pixels = torch.from_numpy(draw.standard_normal((2, 3, size, size), dtype=np.float32))
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = ours.vision_encoder(folder, Checkpoint(folder, spec.renames))(pixels)
        expected = ours.image_features(model, {"pixel_values": pixels})
    assert list(found.shape) == [2, *spec.vision_graph("float32").outputs[0].shape[1:]]
    return float((found.reshape(expected.shape) - expected).abs().max())


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_feature_layer": [0, -1, 2]},
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        {"multimodal_projector_bias": False, "projector_hidden_act": "relu"},
        {"vision_config.model_type": "siglip_vision_model", "vision_feature_select_strategy": "full"},
    ],
)
def test_llava_with_other_towers_and_layers(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert vision_difference(checkpoint(tmp_path, "llava", **changes), "llava") < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_feature_layer": -2},
        {"vision_config.use_qk_norm": True, "vision_config.norm_type": "rms_norm"},
        {"vision_config.use_mean_pooling": False, "vision_config.attention_bias": False},
        {"vision_config.use_absolute_position_embeddings": False, "downsample_ratio": 0.25},
    ],
)
def test_internvl_with_other_towers_and_layers(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert vision_difference(checkpoint(tmp_path, "internvl", **changes), "internvl") < 1e-5


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_weights_by_their_older_names(tmp_path: Path, family: str) -> None:
    """transformers reads them too: our own rewriting of the names would prove nothing."""
    folder = checkpoint(tmp_path, family)
    new = Checkpoint(folder)
    values = {name: new.get(name, new.shape(name)) for name in new.names("")}
    rules = OLD_NAMES if family != "internvl" else OLD_NAMES[:2] + OLD_NAMES[3:]
    older = {name: next(re.sub(*rule, name) for rule in rules if re.search(rule[0], name)) for name in values}
    write_tensors(folder / "model.safetensors", {older[name]: (x, "F32") for name, x in values.items()})
    model, loaded = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    theirs = {name: value.detach().numpy() for name, value in model.named_parameters()}
    ours = Checkpoint(folder, load_spec(folder).renames)
    assert set(ours.names("")) == set(theirs)
    assert all(np.array_equal(ours.get(name, x.shape), x) for name, x in theirs.items())


def test_a_head_of_its_own_counts(tmp_path: Path) -> None:
    """Older files of InternVL do not say that the head is not tied, and have one."""
    from safecode_trt.bundle import Bundle
    from safecode_trt.export import ExportConfig, export_bundle

    folder = checkpoint(tmp_path / "checkpoint", "internvl", tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_spec(folder).text.tie_word_embeddings
    bundle = export_bundle(folder, tmp_path / "bundle", config=ExportConfig(precision="fp32"))
    assert isinstance(bundle, Bundle) and bundle.manifest.parity is not None and bundle.manifest.parity.passed


@pytest.mark.parametrize(
    ("family", "preprocessor", "changes", "message"),
    [
        (
            "llava",
            {"image_processor_type": "PixtralImageProcessor"},
            {},
            "PixtralImageProcessor is not supported",
        ),
        ("llava", {"crop_size": 48}, {}, "does not make pictures of 32 x 32"),
        ("llava", {"size": {"longest_edge": 32}}, {}, "neither a shortest_edge nor height and width"),
        ("llava", {}, {"vision_config.image_size": [32, 64]}, "a pair of equal ones"),
        (
            "llava",
            {},
            {"vision_config.model_type": "siglip_vision_model"},
            "'default' does not go with a siglip_vision_model",
        ),
        ("llava_next", {"image_grid_pinpoints": [[32, 64]]}, {}, "image_grid_pinpoints differ"),
        ("llava_next", {"crop_size": 48}, {}, "crop_size is 48; expected 32"),
        ("llava_next", {}, {"vision_feature_select_strategy": "full"}, "the features of a tile"),
        ("internvl", {"size": {"height": 64, "width": 64}}, {}, "expected 32"),
        ("internvl", {}, {"downsample_ratio": 0.3}, "expected whole features"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, family: str, preprocessor: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    """Only the files are read: such weights need not exist."""
    folder = checkpoint(tmp_path, family, preprocessor)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *path, last = key.split(".")
        target = config
        for step in path:
            target = target[step]
        target[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_spec(folder)
