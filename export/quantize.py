"""Quantisation of weights, in blocks along the input axis or a whole output at once. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safecode_trt.manifest import Quantization

__all__ = ["Quantized", "dequantize", "pack_int4", "quantize", "quantize_slabs", "unpack_int4"]

Array = NDArray[np.float32]
# Rows per round: the temporaries of a round stay in the processor's cache and never add up.
SLAB = 256
# The shares of a block's range that the scale search tries in addition to the whole: what lies beyond is cut off.
KEPT: Sequence[float] = tuple(1 - step / 40 for step in range(1, 17))
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A weight (K, N) for x @ w: `values` int8, `scales` and `zero_points` (K / block, N).

    `how` says which of the codes -128..127 or -8..7 are used, and what was lost.
    """

    values: NDArray[np.int8]
    scales: Array
    zero_points: NDArray[np.int8] | None
    how: Quantization


def quantize(weight: Array, how: Quantization) -> Quantized:
    """Quantises a weight (N, K), rows being outputs as in a checkpoint, and transposes it.

    Raises:
        ValueError: K is not a multiple of the block size.
    """
    outputs, inputs = weight.shape
    return quantize_slabs([weight], (outputs, inputs), how)


def quantize_slabs(slabs: Iterable[Array], shape: tuple[int, int], how: Quantization) -> Quantized:
    """As `quantize`, of a weight of that shape (N, K) that comes some rows at a time.

    Symmetric codes of eight bits are -127..127, of four bits -8..7: a block's largest value gets the code -8,
    whose side has one step more. Asymmetric codes spread over the block's range, which is made to hold 0.

    Raises:
        ValueError: K is not a multiple of the block size.
    """
    outputs, inputs = shape
    block = how.block_size or inputs
    if inputs % block:
        raise ValueError(f"expected a multiple of {block} inputs, got {inputs}")
    values = np.empty((inputs, outputs), np.int8)
    scales = np.empty((inputs // block, outputs), np.float32)
    zero_points = None if how.symmetric else np.empty(scales.shape, np.int8)
    lost = total = 0.0
    start = 0
    for rows in (slab[at : at + SLAB] for slab in slabs for at in range(0, len(slab), SLAB)):
        codes, slab_scales, zeros = _quantize_blocks(rows.reshape(len(rows), -1, block), how)
        columns = slice(start, start + len(rows))
        values[:, columns] = codes.reshape(rows.shape).astype(np.int8).T
        scales[:, columns] = slab_scales.T
        if zero_points is not None:
            zero_points[:, columns] = zeros.astype(np.int8).T
        difference = _restore(codes, slab_scales, zeros).reshape(rows.shape) - rows
        lost += float(np.vdot(difference, difference))
        total += float(np.vdot(rows, rows))
        start += len(rows)
    error = (lost / total) ** 0.5 if total else 0.0
    return Quantized(values=values, scales=scales, zero_points=zero_points, how=replace(how, error=error))


def dequantize(quantized: Quantized) -> Array:
    """The weight (N, K) that the codes stand for: what DequantizeLinear makes of them, transposed."""
    block = quantized.how.block_size or len(quantized.values)
    weight = quantized.values.astype(np.float32)
    if quantized.zero_points is not None:
        weight -= np.repeat(quantized.zero_points, block, axis=0)
    weight *= np.repeat(quantized.scales, block, axis=0)
    return np.ascontiguousarray(weight.T)


def _quantize_blocks(blocks: Array, how: Quantization) -> tuple[Array, Array, Array]:
    """Codes (n, K / block, block), still as floats, scales and zero points (n, K / block)."""
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    best = _round(blocks, low, high, how)
    if how.method == "scale-search":
        least = _lost(blocks, best)
        for kept in KEPT:
            found = _round(blocks, low * np.float32(kept), high * np.float32(kept), how)
            lost = _lost(blocks, found)
            better = lost < least
            least = np.where(better, lost, least)
            for mine, new in zip(best, found, strict=True):
                mine[better] = new[better]
    return best


def _round(blocks: Array, low: Array, high: Array, how: Quantization) -> tuple[Array, Array, Array]:
    """The nearest codes on a grid for the range low..high, with the grid's scales and zero points."""
    half = np.float32(1 << (how.bits - 1))
    first, last = -half, half - 1
    if not how.symmetric:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / np.float32(2 * half - 1)
    elif how.bits == 4:
        scales = np.where(high > -low, high, low) / np.float32(first)
    else:
        first = -last
        scales = np.maximum(high, -low) / np.float32(last)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=np.abs(scales) >= TINY)
    zeros = np.zeros_like(scales) if how.symmetric else np.rint(-low * inverse) - half
    codes = blocks * inverse[..., None]
    np.rint(codes, out=codes)
    codes += zeros[..., None]
    np.clip(codes, first, last, out=codes)
    return codes, scales, zeros


def _restore(codes: Array, scales: Array, zeros: Array) -> Array:
    restored: Array = (codes - zeros[..., None]) * scales[..., None]
    return restored


def _lost(blocks: Array, quantized: tuple[Array, Array, Array]) -> Array:
    """The squared error of every block."""
    difference = _restore(*quantized) - blocks
    lost: Array = np.einsum("nkb,nkb->nk", difference, difference)
    return lost


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
