"""The token embedding table as a file of its own, which the runtime maps and never loads whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.models import ModelSpec

__all__ = ["write_embeddings", "write_tensor"]

FLOATS = ("F16", "BF16", "F32")


def write_embeddings(checkpoint: Checkpoint, spec: ModelSpec, path: Path) -> None:
    """Writes `embed_tokens` (V, E) in the checkpoint's own float type.

    Raises:
        CheckpointError: the table is missing, has the wrong shape, or is not of a float type.
    """
    text = spec.text
    table = checkpoint.mapped(spec.weights.embed_tokens, (text.vocab_size, text.hidden_size))
    if table.dtype not in FLOATS:
        raise CheckpointError(f"{table.name} has type {table.dtype}; expected one of {', '.join(FLOATS)}")
    write_tensor(path, "embed_tokens", table.data, table.dtype)


def write_tensor(path: Path, name: str, data: NDArray[Any], dtype: str) -> None:
    """Writes a safetensors file with one tensor; `dtype` is the format's word for the array's type."""
    entry = {"dtype": dtype, "shape": list(data.shape), "data_offsets": [0, data.nbytes]}
    header = json.dumps({name: entry}).encode()
    header += b" " * (-(8 + len(header)) % 64)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        np.ascontiguousarray(data).tofile(file)
