"""The graphs that doctor executes: as the exporter makes them, valid, and right in numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from safecode_trt.contract import ATTENTION_FORMS, AttentionForm
from safecode_trt.doctor import probe
from safecode_trt.export.attention import DecomposedForm, PortableForm

pytest.importorskip("onnx_ir")

OPERATORS: dict[AttentionForm, set[str]] = {
    "portable": {"RMSNormalization", "RotaryEmbedding", "TensorScatter", "Attention"},
    "decomposed": {"MatMul", "Softmax", "ScatterElements", "Range"},
}
OPSETS = {"portable": PortableForm.opset, "decomposed": DecomposedForm.opset}
every_probe = pytest.mark.parametrize(
    ("form", "dtype"), [(form, dtype) for form in ATTENTION_FORMS for dtype in probe.DTYPES]
)


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from write_probes import write_probes

    folder = tmp_path_factory.mktemp("probes")
    write_probes(folder)
    return folder


def test_the_folder_holds_the_probes_only(made_again: Path) -> None:
    names = {path.name for path in made_again.iterdir()}
    assert {path.name for path in probe.FOLDER.iterdir()} == names and len(names) == 5
    assert json.loads((made_again / probe.SHAPE_NODES.name).read_bytes()) == json.loads(
        probe.SHAPE_NODES.read_bytes()
    )


@every_probe
def test_the_shipped_graph_is_what_the_exporter_makes(
    made_again: Path, form: AttentionForm, dtype: probe.Dtype
) -> None:
    """If this fails after a change of the exporter: python tools/write_probes.py"""
    shipped, again = (
        onnx.load(folder / probe.graph_path(form, dtype).name) for folder in (probe.FOLDER, made_again)
    )
    weights = [{x.name: onnx.numpy_helper.to_array(x) for x in m.graph.initializer} for m in (shipped, again)]
    assert list(weights[0]) == list(weights[1])
    for name, array in weights[0].items():
        assert array.dtype == weights[1][name].dtype
        np.testing.assert_allclose(array, weights[1][name], rtol=1e-3 if dtype == "float16" else 1e-6)
    for model in (shipped, again):
        del model.graph.initializer[:]
    assert shipped == again


@every_probe
def test_the_probe_is_a_valid_model(form: AttentionForm, dtype: probe.Dtype) -> None:
    model = onnx.load(probe.graph_path(form, dtype))
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} >= OPERATORS[form]
    assert [(x.domain, x.version) for x in model.opset_import] == [("", OPSETS[form])]
    assert [given.name for given in model.graph.input] == list(probe.feeds(dtype))
    assert [made.name for made in model.graph.output] == list(probe.expected(dtype))
    names = {node.name for node in model.graph.node}
    assert set(probe.shape_nodes(form, dtype)) <= names


@every_probe
def test_onnxruntime_computes_what_numpy_does(form: AttentionForm, dtype: probe.Dtype) -> None:
    session = onnxruntime.InferenceSession(probe.graph_path(form, dtype), providers=["CPUExecutionProvider"])
    right = probe.expected(dtype)
    for name, found in zip(right, session.run(list(right), probe.feeds(dtype)), strict=True):
        np.testing.assert_allclose(found, right[name], atol=1e-5 if dtype == "float32" else 2e-2)
        assert 0.3 < np.abs(right[name]).mean() < 3, "numbers around 1, by which tolerances are meant"


def test_every_weight_and_input_has_a_part_in_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that ignored one would be found out: its change is larger than the tolerance."""
    right, feeds, weights = probe.expected(), probe.feeds(), probe.weights()

    def difference() -> float:
        return max(float(np.abs(x - right[name]).max()) for name, x in probe.expected().items())

    assert difference() == 0
    for given, name in [(feeds, name) for name in feeds if name != "write_indices"] + [
        (weights, name) for name in weights
    ]:
        changed = {**given, name: given[name] * np.float32(0.5)}
        with monkeypatch.context() as patch:
            patch.setattr(
                probe, "feeds" if given is feeds else "weights", lambda dtype, changed=changed: changed
            )
            if name == "attention_bias":  # half of it still masks everything
                changed[name] = np.zeros_like(given[name])
            assert difference() > 5 * max(probe.TOLERANCE.values()), name


@pytest.mark.trt
def test_the_probe_builds_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from safecode_trt.doctor.probe_engine import _build

    model = probe.graph_path("decomposed", "float16").read_bytes()
    assert len(memoryview(_build(trt, trt.Logger(trt.Logger.ERROR), model)))
