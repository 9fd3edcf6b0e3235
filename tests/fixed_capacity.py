"""A decoder graph with a cache of one size, as TensorRT wants it."""

from __future__ import annotations

from pathlib import Path


def with_capacity(path: Path, capacity: int) -> Path:
    """The graph with CAP fixed, beside it: TensorRT's TensorScatter takes no cache of a free length."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "CAP":
                axis.dim_value = capacity
    fixed = path.with_name(f"{path.stem}-{capacity}.onnx")
    onnx.save(model, fixed)
    return fixed
