"""The token embedding table as a file of its own, which the runtime maps and never loads whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.models import ModelSpec

__all__ = ["write_embeddings", "write_tensors"]

FLOATS = ("F16", "BF16", "F32")


def write_embeddings(checkpoint: Checkpoint, spec: ModelSpec, path: Path) -> None:
    """Writes `embed_tokens` (V, E) in the checkpoint's own float type.

    Raises:
        CheckpointError: the table is missing, has the wrong shape, is not of a float type, or not finite.
    """
    text = spec.text
    name, shape = spec.weights.embed_tokens, (text.vocab_size, text.hidden_size)
    table = checkpoint.mapped(name, shape)
    if table.dtype not in FLOATS:
        raise CheckpointError(f"{table.name} has type {table.dtype}; expected one of {', '.join(FLOATS)}")
    for _ in checkpoint.slabs(name, shape):  # refuses what is not finite
        pass
    write_tensors(path, {"embed_tokens": (table.data, table.dtype)})


def write_tensors(path: Path, tensors: Mapping[str, tuple[NDArray[Any], str]]) -> None:
    """Writes a safetensors file of arrays by name, each with the format's word for its type."""
    entries, offset = {}, 0
    for name, (data, dtype) in tensors.items():
        span = [offset, offset + data.nbytes]
        entries[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": span}
        offset += data.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % 64)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for data, _ in tensors.values():
            np.ascontiguousarray(data).tofile(file)
