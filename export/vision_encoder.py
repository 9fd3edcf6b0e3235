"""The vision encoder, traced from transformers' module inside the thin wrapper of its family.

Knows nothing of families; imports torch when called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from safecode_trt.contract import GraphSpec, VisionPrecision
from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.quiet import quiet
from safecode_trt.export.vision_quantize import shrink_weights
from safecode_trt.manifest import Quantization
from safecode_trt.models import ModelSpec
from safecode_trt.runtime.image import noise_views, normalise

if TYPE_CHECKING:
    from torch import nn

__all__ = ["write_vision_encoder"]

# The newest opset before Attention became an operator: TensorRT 10.3 reads it, and TensorRT builds it in float32
# too, where it has no fused kernel for Attention. ONNX Runtime's processor time is the same for both.
OPSET = 20
MOST = 1 << 16


def write_vision_encoder(
    checkpoint: Checkpoint, spec: ModelSpec, graph: GraphSpec, path: Path, *, precision: VisionPrecision
) -> Mapping[str, Quantization]:
    """Traces the encoder and writes it to `path`, its weights next to it to `path` + ".data".

    `graph` is `ModelSpec.vision_graph`, with the type of the activations; `precision` is that of the weights.
    Returns how each quantised weight was quantised.

    Raises:
        CheckpointError: a tensor is missing or wrong, or the traced graph is not that of the contract.
    """
    import onnx_ir as ir
    import torch

    family = importlib.import_module(f"safecode_trt.export.families.{spec.model_type}")
    module: nn.Module = family.vision_encoder(checkpoint.folder, checkpoint)
    half = any(tensor.dtype == "float16" for tensor in graph.inputs)
    dtype = torch.float16 if half else torch.float32
    example = _example(spec)
    dims = {
        axis: torch.export.Dim(axis, min=1, max=MOST)
        for tensor in graph.inputs
        for axis in tensor.shape
        if isinstance(axis, str)
    }
    shapes = {
        tensor.name: {i: dims[axis] for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in graph.inputs
    }
    tensors = (torch.from_numpy(example[tensor.name]) for tensor in graph.inputs)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            module.to(dtype),
            tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=[tensor.name for tensor in graph.outputs],
            dynamic_shapes=shapes,
            verbose=False,
        )
    model = cast(Any, program).model
    _check(model, graph)
    quantization = shrink_weights(model, precision)
    ir.save(model, path, external_data=path.name + ".data", alignment=4096, align_threshold=4096)
    return quantization


def _example(spec: ModelSpec) -> Mapping[str, Any]:
    """Inputs of two pictures in the reference layout: an axis of one would be taken for a constant."""
    layout = spec.reference_layout
    views = normalise(noise_views(layout, 0.5, 0), spec)
    words = np.arange(1, 8, dtype=np.int64) if spec.words_tokenizer else None
    inputs = spec.vision_inputs(views, layout, words)
    return {name: np.concatenate([x, x]) for name, x in inputs.items()}


def _check(model: Any, graph: GraphSpec) -> None:
    """Holds the traced graph against the contract: names, sizes, and the default operator domain."""
    values = (*model.graph.inputs, *model.graph.outputs)
    found = [(value.name, _axes(value.shape)) for value in values]
    wanted = [(tensor.name, _axes(tensor.shape)) for tensor in (*graph.inputs, *graph.outputs)]
    domains = {node.domain for node in model.graph.all_nodes()} - {""}
    if found != wanted or domains:
        raise CheckpointError(
            f"the vision encoder was traced to {found} with operators of {sorted(domains) or 'the default domain'}; "
            f"expected {wanted} and the default domain; does this version of transformers fit the checkpoint?"
        )


def _axes(shape: Any) -> list[int | str]:
    return [size if isinstance(size, int) else "?" for size in shape]
