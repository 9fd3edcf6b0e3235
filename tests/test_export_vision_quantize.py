"""Smaller weights in the vision encoder: which become smaller, what the features lose, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.contract import VisionPrecision
from safecode_trt.errors import CheckpointError
from safecode_trt.manifest import VISION_ENCODER

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from safecode_trt.export.vision_quantize import shrink_weights  # noqa: E402

PICTURES = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, 32, 32), dtype=np.float32)


def run(path: Path, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
    """The first output, and the graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0], onnx.load(path.with_name("optimised.onnx")).graph


def graph_of(*nodes: str, weight: np.ndarray) -> Any:
    """A model of x (2, 64) and a weight `w`, in ONNX's text form."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2, 64] x) => (float[2, N] y) {'
        + "".join(nodes)
        + "}"
    )
    value = ir.Value(
        name="w",
        type=ir.TensorType(ir.DataType.from_numpy(weight.dtype)),
        shape=ir.Shape(weight.shape),
        const_value=ir.Tensor(weight, name="w"),
    )
    model.graph.register_initializer(value)
    for node in model.graph:
        for place, operand in enumerate(node.inputs):
            if operand is not None and operand.name == "w":
                node.replace_input_with(place, value)
    return model


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 2e-3), ("int8", 0.02)])
def test_large_matrices_become_smaller_and_the_features_stay(
    tiny_bundle: Bundle, tmp_path: Path, precision: VisionPrecision, limit: float
) -> None:
    original = tiny_bundle.file(VISION_ENCODER)
    model = ir.load(original)
    found = shrink_weights(model, precision)
    path = tmp_path / "vision.onnx"
    ir.save(model, path, external_data="vision.onnx.data")
    onnx.checker.check_model(str(path), full_check=True)
    expected, _ = run(original, {"pixel_values": PICTURES})
    features, graph = run(path, {"pixel_values": PICTURES})
    assert np.abs(features - expected).max() < limit * np.abs(expected).max()
    # Two layers of two matrices, and the projector; the attention's of 48 x 48 are small, the convolution has 4 axes.
    kind = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    stored = [t for t in onnx.load(path, load_external_data=False).graph.initializer if t.data_type == kind]
    assert sorted(tuple(t.dims) for t in stored) == [(48, 96), (48, 96), (96, 48), (96, 48), (192, 64)]
    operators = [node.op_type for node in graph.node]
    if precision == "int8":
        assert len(found) == operators.count("MatMulNBits") == 5
        assert all(how.error is not None and 0 < how.error < 0.01 for how in found.values())
    else:
        assert not found and "Cast" not in operators, "computed when the graph is opened"
    assert "DequantizeLinear" not in operators


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(
    ("node", "transposed"),
    [("y = MatMul(x, w)", False), ("y = Gemm(x, w)", False), ("y = Gemm <transB: int = 1> (x, w)", True)],
)
def test_every_product_keeps_its_meaning(
    tmp_path: Path, precision: VisionPrecision, node: str, transposed: bool
) -> None:
    draw = np.random.Generator(np.random.PCG64(1))
    weight = draw.standard_normal((80, 64) if transposed else (64, 80), dtype=np.float32)
    # Channels of very different sizes: the scales must lie along the outputs.
    sizes = np.logspace(-3, 3, 80, dtype=np.float32)
    weight *= sizes[:, None] if transposed else sizes
    x = draw.standard_normal((2, 64), dtype=np.float32)
    model = graph_of(node, weight=weight)
    assert len(shrink_weights(model, precision)) == (precision == "int8")
    ir.save(model, tmp_path / "g.onnx")
    found, _ = run(tmp_path / "g.onnx", {"x": x})
    expected = x @ (weight.T if transposed else weight)
    assert (np.abs(found - expected).max(axis=0) < 0.5 * sizes).all()


@pytest.mark.parametrize(
    "nodes",
    [
        ("z = Add(x, w)", "y = Add(z, w)"),  # no product
        ("z = MatMul(x, w)", "y = MatMul(w, z)"),  # on either side
        ("z = Gemm(x, w)", "y = Gemm <transB: int = 1> (z, w)"),  # both ways round
    ],
)
def test_other_uses_keep_a_weight_as_it_is(nodes: tuple[str, ...]) -> None:
    model = graph_of(*nodes, weight=np.ones((64, 64), np.float32))
    assert not shrink_weights(model, "int8")
    assert set(model.graph.initializers) == {"w"} and len(list(model.graph)) == len(nodes)


def test_a_weight_that_is_used_twice_is_stored_once(tmp_path: Path) -> None:
    weight = np.eye(64, dtype=np.float32)
    model = graph_of("z = MatMul(x, w)", "y = MatMul(z, w)", weight=weight)
    assert list(shrink_weights(model, "int8")) == ["vision_encoder/w"]
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "MatMul"]


def test_values_beyond_float16_are_refused() -> None:
    model = graph_of("y = MatMul(x, w)", weight=np.full((64, 64), 1e5, np.float32))
    with pytest.raises(
        CheckpointError, match=r"weight w has values beyond float16's range; fix: pass --vision-prec"
    ):
        shrink_weights(model, "fp16")
