"""Symmetric round-to-nearest quantisation of weights, in blocks along the input axis. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bits", "Quantized", "pack_int4", "quantize", "unpack_int4"]

Bits = Literal[4, 8]
# Rows per round: the temporaries of a round stay in the processor's cache and never add up.
SLAB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A weight (K, N) for x @ w: `values` int8, `scales` (K / block, N) float32.

    `error` is the L2 norm of the difference over that of the weight.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    error: float


def quantize(weight: NDArray[np.float32], bits: Bits, block_size: int) -> Quantized:
    """Quantises a weight (N, K), rows being outputs as in a checkpoint, and transposes it.

    Every `block_size` inputs of an output share a scale. Eight bits use the codes -127..127. Four bits use
    -8..7; a block's largest value gets the code -8, whose side has one step more.

    Raises:
        ValueError: K is not a multiple of the block size.
    """
    outputs, inputs = weight.shape
    if inputs % block_size:
        raise ValueError(f"expected a multiple of {block_size} inputs, got {inputs}")
    values = np.empty((inputs, outputs), np.int8)
    scales = np.empty((inputs // block_size, outputs), np.float32)
    lost = total = 0.0
    for start in range(0, outputs, SLAB):
        rows = weight[start : start + SLAB]
        codes, slab_scales = _quantize_rows(rows.reshape(len(rows), -1, block_size), bits)
        values[:, start : start + SLAB] = codes.reshape(rows.shape).astype(np.int8).T
        scales[:, start : start + SLAB] = slab_scales.T
        codes *= slab_scales[..., None]
        difference = codes.reshape(rows.shape) - rows
        lost += float(np.vdot(difference, difference))
        total += float(np.vdot(rows, rows))
    return Quantized(values=values, scales=scales, error=(lost / total) ** 0.5 if total else 0.0)


def _quantize_rows(
    blocks: NDArray[np.float32], bits: Bits
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Codes (n, K / block, block), still as floats, and scales (n, K / block)."""
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    # Looking for scales with a smaller error, which cut the largest weights, makes the model worse: tried.
    if bits == 4:
        scales = np.where(high > -low, high, low) / np.float32(-8)
    else:
        scales = np.maximum(high, -low) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    codes = blocks * inverse[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, -8 if bits == 4 else -127, 7 if bits == 4 else 127, out=codes)
    return codes, scales


def pack_int4(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """ONNX's packing: two neighbours of the flattened tensor in a byte, the first in the low half."""
    flat = values.reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: NDArray[np.uint8] = (flat[0::2] & np.uint8(0x0F)) | (flat[1::2] << np.uint8(4))
    return packed


def unpack_int4(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The inverse of `pack_int4`."""
    flat = np.empty(2 * packed.size, np.int8)
    flat[0::2] = (packed << np.uint8(4)).view(np.int8) >> 4
    flat[1::2] = packed.view(np.int8) >> 4
    return flat[: int(np.prod(shape))].reshape(shape)
