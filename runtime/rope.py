"""Rotary position embeddings as tables, so that every rotary variant is one graph. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import TextConfig

__all__ = ["rope_tables"]


def rope_tables(text: TextConfig, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each (length, D/2), of the default rotary embedding (arXiv 2104.09864)."""
    exponents = np.arange(0, text.head_dim, 2, dtype=np.float32) / np.float32(text.head_dim)
    inverse_frequencies = (1.0 / np.power(np.float32(text.rope_theta), exponents)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
    return np.cos(angles), np.sin(angles)
