"""The decoder that engines are built from computes what the bundle's does, with a cache of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.contract import ATTENTION_FORMS, AttentionForm, Geometry, GraphSpec, decoder_graph
from safecode_trt.models import load_spec
from safecode_trt.runtime.backends.ort import open_graph
from safecode_trt.runtime.engine_choice import engine_spec

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402
from safecode_trt.export.decoder import write_decoder  # noqa: E402
from safecode_trt.export.engine_graph import engine_graph  # noqa: E402
from safecode_trt.export.export_config import ExportConfig  # noqa: E402
from safecode_trt.export.package import geometry as geometry_of  # noqa: E402

CAPACITY, VISIBLE = 48, 21
every_form = pytest.mark.parametrize("attention", ATTENTION_FORMS)


@pytest.fixture(scope="module")
def geometry(tiny_checkpoint: Path) -> Geometry:
    return geometry_of(load_spec(tiny_checkpoint), ExportConfig(context_length=CAPACITY))


def written(folder: Path, checkpoint: Path, geometry: Geometry, attention: AttentionForm) -> Path:
    path = folder / "decoder.onnx"
    write_decoder(
        Checkpoint(checkpoint), load_spec(checkpoint), geometry, path, precision="fp32", attention=attention
    )
    return path


def inputs(spec: GraphSpec, capacity: int) -> dict[str, np.ndarray]:
    """Two rows of three new tokens, the first behind 9 positions and the second behind 14; random everything."""
    draw = np.random.Generator(np.random.PCG64(3))
    sizes = {"C": 2, "T": 3, "Q": 2, "CAP": capacity}
    feeds: dict[str, np.ndarray] = {}
    for tensor in spec.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        feeds[tensor.name] = draw.standard_normal(shape).astype(tensor.dtype)
    starts = np.array([9, 14])
    queries = starts[:, None] + np.arange(3)
    feeds["write_indices"], feeds["logit_positions"] = starts, np.array([[2, 0], [1, 2]])
    feeds["attention_bias"] = np.where(np.arange(capacity) <= queries[..., None], 0, -30000.0)[
        :, None
    ].astype(np.float32)
    return feeds


def run(path: Path, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    session = open_graph(path, threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@every_form
def test_it_computes_the_same_from_a_narrow_mask(
    tiny_checkpoint: Path, geometry: Geometry, tmp_path: Path, attention: AttentionForm
) -> None:
    path = written(tmp_path, tiny_checkpoint, geometry, attention)
    spec = decoder_graph(geometry, "fp32")
    feeds = inputs(spec, CAPACITY)
    expected = run(path, feeds)
    (tmp_path / "engine.onnx").write_bytes(engine_graph(ir.load(path), engine_spec(spec, CAPACITY)))
    found = run(tmp_path / "engine.onnx", {**feeds, "attention_bias": feeds["attention_bias"][..., :VISIBLE]})
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert np.abs(found[name] - value).max() < 1e-5
    # What is not shown is not read: else NaN behind the mask would be everywhere.
    for name, value in feeds.items():
        if name.startswith("past_key_values"):
            value[:, :, VISIBLE:] = np.nan
    again = run(tmp_path / "engine.onnx", {**feeds, "attention_bias": feeds["attention_bias"][..., :VISIBLE]})
    assert np.abs(again["logits"] - expected["logits"]).max() < 1e-5


@every_form
def test_the_graph_is_valid_and_keeps_its_weights_where_they_are(
    tiny_checkpoint: Path, geometry: Geometry, tmp_path: Path, attention: AttentionForm
) -> None:
    path = written(tmp_path, tiny_checkpoint, geometry, attention)
    before = path.read_bytes()
    spec = engine_spec(decoder_graph(geometry, "fp32"), CAPACITY)
    data = engine_graph(ir.load(path), spec)
    assert len(data) < len(before) + 40_000 and path.read_bytes() == before
    (tmp_path / "engine.onnx").write_bytes(data)
    onnx.checker.check_model(str(tmp_path / "engine.onnx"), full_check=True)
    model = onnx.load(tmp_path / "engine.onnx", load_external_data=False)
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        found = [
            (value.name, tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim))
            for value in values
        ]
        assert found == [(tensor.name, tensor.shape) for tensor in tensors]
    slices = [node for node in model.graph.node if node.op_type == "Slice"]
    assert len(slices) == 2 * geometry.num_hidden_layers
    assert {node.input[2] for node in slices} == {"/engine/visible/Shape_output_0"}
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"decoder.onnx.data"}


def test_the_spec_fixes_the_cache_and_frees_the_mask(geometry: Geometry) -> None:
    spec = engine_spec(decoder_graph(geometry, "fp16"), 96)
    shapes = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    assert shapes["attention_bias"] == ("C", 1, "T", "K")
    assert shapes["past_key_values.0.key"] == shapes["present.1.value"]
    assert shapes["present.0.key"][2] == 96
    assert not any("CAP" in shape for shape in shapes.values())
