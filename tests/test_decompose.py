"""A portable decoder rewritten into the decomposed form is the one that export writes in that form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.contract import (
    Activations,
    AttentionForm,
    Geometry,
    GraphSpec,
    Precision,
    activation_dtype,
    decoder_graph,
)
from safecode_trt.models import ModelSpec, load_spec
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

import onnx
import onnx_ir as ir
import onnxruntime as ort

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.decompose import decompose
from safecode_trt.export.export_config import ExportConfig
from safecode_trt.export.graph import NodeBuilder
from safecode_trt.export.package import geometry as geometry_of

# Cross attention; norms of queries and keys, and inputs between the layers; three rotary axes.
OWN = [case for case in cases() if case.model_type in ("idefics", "qwen3_vl", "qwen2_vl")]
SIZES = {"Q": 2, "C": 2, "T": 3, "CAP": 48, "S": 5}


def decoder(
    folder: Path, spec: ModelSpec, geometry: Geometry, path: Path, form: AttentionForm, precision: Precision
) -> Path:
    path.parent.mkdir()
    write_decoder(
        Checkpoint(folder, spec.renames, spec.joins),
        spec,
        geometry,
        path,
        precision=precision,
        attention=form,
        activations=activations_of(precision),
    )
    return path


def activations_of(precision: Precision) -> Activations:
    """Quantised weights leave a choice: int8 here has the one, int4 the other."""
    return "bf16" if precision == "bf16" else "fp32" if precision in ("fp32", "int8") else "fp16"


def rewritten(path: Path, geometry: Geometry, precision: Precision) -> onnx.ModelProto:
    model = ir.load(path)
    decompose(model, geometry, activation_dtype(precision, activations_of(precision)))
    return ir.serde.serialize_model(model)


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Initializers, which have no order of meaning, by name."""
    for field in (model.graph.initializer, model.graph.value_info):
        tensors = sorted(field, key=lambda tensor: tensor.name)
        del field[:]
        field.extend(tensors)
    return model


def every_decoder() -> list[tuple[FamilyCase, Precision]]:
    """Every family in fp16, and the three with decoders of their own in every type of weights."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8", "int4")
    half: list[tuple[FamilyCase, Precision]] = [(case, "fp16") for case in cases()]
    return half + [(case, precision) for case in OWN for precision in precisions]


@pytest.mark.parametrize(("case", "precision"), every_decoder(), ids=lambda x: getattr(x, "model_type", x))
def test_it_is_the_graph_that_export_writes(
    case: FamilyCase, precision: Precision, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    folder = made.checkpoint(case)
    spec = load_spec(folder)
    geometry = geometry_of(spec, ExportConfig(context_length=SIZES["CAP"]))
    portable, exported = (
        decoder(folder, spec, geometry, tmp_path / form / "decoder.onnx", form, precision)
        for form in ("portable", "decomposed")
    )
    data = [path.with_name("decoder.onnx.data").read_bytes() for path in (portable, exported)]
    found = rewritten(portable, geometry, precision)
    assert in_order(found) == in_order(onnx.load(exported, load_external_data=False))
    assert data[0] == data[1] == portable.with_name("decoder.onnx.data").read_bytes()
    assert found.opset_import[0].version <= 21


def feeds(spec: GraphSpec) -> dict[str, np.ndarray]:
    """Two rows of three new tokens, the first behind 9 positions and the second behind 14; random everything."""
    draw = np.random.Generator(np.random.PCG64(3))
    found = {}
    for tensor in spec.inputs:
        shape = [SIZES[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        found[tensor.name] = draw.standard_normal(shape).astype(tensor.dtype)
    starts = np.array([9, 14])
    queries = starts[:, None] + np.arange(SIZES["T"])
    visible = np.arange(SIZES["CAP"]) <= queries[..., None]
    bias = found["attention_bias"]
    found |= {"write_indices": starts, "logit_positions": np.array([[2, 0], [1, 2]])}
    found["attention_bias"] = np.where(visible, 0, -30000.0)[:, None].astype(bias.dtype)
    return found


def as_written(path: Path) -> Any:
    """ONNX Runtime's fusions would round the activations of int4 to int8, and a difference of 0.1 be nothing."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.model_type)
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.02), ("int4", 0.02)])
def test_it_computes_what_the_portable_form_does(
    case: FamilyCase, precision: Precision, limit: float, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    folder, activations = made.checkpoint(case), activations_of(precision)
    spec = load_spec(folder)
    geometry = geometry_of(spec, ExportConfig(context_length=SIZES["CAP"]))
    path = decoder(folder, spec, geometry, tmp_path / "bundle" / "decoder.onnx", "portable", precision)
    other = path.with_name("rewritten.onnx")
    onnx.save(rewritten(path, geometry, precision), other)
    onnx.checker.check_model(str(other), full_check=True)
    family = spec.decoder_inputs(activation_dtype(precision, activations))
    values = feeds(decoder_graph(geometry, precision, family, activations=activations))
    sessions = [as_written(file) for file in (path, other)]
    expected, found = (session.run(None, values) for session in sessions)
    for name, one, two in zip((x.name for x in sessions[0].get_outputs()), expected, found, strict=True):
        assert one.shape == two.shape and np.isfinite(two).all(), name
        assert np.abs(one.astype(np.float32) - two).max() < limit, name


def test_a_constant_that_the_graph_has_is_taken_and_must_be_the_same() -> None:
    held = ir.Tensor(np.array([1], np.int64), name="/axes/1")
    value = ir.Value(name="/axes/1", const_value=held)
    builder = NodeBuilder.on(ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 20}))
    assert builder.constant("/axes/1", [1]) is value
    with pytest.raises(ValueError, match=r"constant /axes/1 is .* and cannot be"):
        builder.constant("/axes/1", [2])
