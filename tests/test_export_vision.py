"""The traced vision encoder, and what is made with it: the cached reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from safecode_trt.contract import square_vision_graph
from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.manifest import REFERENCE, VISION_ENCODER
from safecode_trt.models import load_spec
from safecode_trt.runtime.backends.ort import open_graph
from safecode_trt.runtime.image import noise_views, normalise
from safecode_trt.tensors import map_tensors

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(seed))
    return draw.standard_normal((count, 3, size, size), dtype=np.float32)


def reference_features(model: Any, pixels: np.ndarray) -> np.ndarray:
    """transformers' features (P, N, E) of pictures given as those of one sample."""
    with torch.no_grad():
        (features,) = model.get_image_features(torch.from_numpy(pixels)[None], return_dict=True).pooler_output
    return features.reshape(len(pixels), -1, features.shape[-1]).numpy()


def test_features_are_those_of_transformers(tiny_checkpoint: Path, tiny_bundle: Bundle) -> None:
    model = transformers.Idefics3Model.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    session = open_graph(tiny_bundle.file(VISION_ENCODER), threads=1)
    for count in (1, 2, 3):
        pixels = pictures(count, 32)
        (features,) = session.run(None, {"pixel_values": pixels})
        expected = reference_features(model, pixels)
        assert features.shape == (count, 4, 64)
        assert np.abs(features - expected).max() < 1e-4


def test_graph_is_valid_standard_and_as_promised(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.file(VISION_ENCODER)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version <= 20
    assert {node.domain for node in model.graph.node} == {""}
    assert "Attention" not in {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ["pixel_values"]
    assert [value.name for value in model.graph.output] == ["image_features"]


@pytest.mark.slow
def test_positions_are_the_modules_own(tmp_path: Path) -> None:
    """A grid of 9 x 9 patches, where its float arithmetic does not count 0, 1, 2, ..."""
    from safecode_trt.export.families.idefics3 import vision_encoder

    write_checkpoint(tmp_path, changes={"vision_config.image_size": 72, "scale_factor": 3})
    pixels = pictures(2, 72)
    with torch.no_grad():
        found = vision_encoder(tmp_path, Checkpoint(tmp_path))(torch.from_numpy(pixels)).numpy()
    model = transformers.Idefics3Model.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert np.abs(found - reference_features(model, pixels)).max() < 1e-4


def test_a_graph_that_is_not_the_contracts_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safecode_trt.export.vision_encoder import write_vision_encoder

    spec = load_spec(tiny_checkpoint)
    other = square_vision_graph(32, 9, spec.text.hidden_size, "float32")
    assert spec.vision_graph("float32") == square_vision_graph(32, 4, spec.text.hidden_size, "float32")
    with pytest.raises(CheckpointError, match="does this version of transformers fit the checkpoint"):
        write_vision_encoder(
            Checkpoint(tiny_checkpoint), spec, other, tmp_path / "vision.onnx", precision="fp32"
        )


def test_reference_is_the_noise_picture_encoded(tiny_bundle: Bundle) -> None:
    defaults, spec = tiny_bundle.manifest.safecode, load_spec(tiny_bundle.path)
    views = noise_views(spec.reference_layout, defaults.reference_sigma, defaults.reference_seed)
    session = open_graph(tiny_bundle.file(VISION_ENCODER), threads=1)
    (features,) = session.run(None, {"pixel_values": np.stack(normalise(views, spec))})
    stored = map_tensors(tiny_bundle.file(REFERENCE))["image_features"]
    assert stored.dtype == "F32"
    assert np.allclose(stored.data, features[0], atol=1e-5)
