"""Rotary position embeddings as tables, so that every rotary variant is one graph. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import ConfigError
from safecode_trt.models import RopeConfig, TextConfig

__all__ = ["RotaryEmbedding", "attention_scale", "inverse_frequencies"]

Table = NDArray[np.float32]


class RotaryEmbedding:
    """Cosines and sines of a decoder for the positions below `length`, looked up in tables.

    Raises:
        ConfigError: the variant has no fixed table of that length.
    """

    def __init__(self, text: TextConfig, length: int) -> None:
        rope = text.rope
        if rope.rope_type == "dynamic" and length > rope.max_position_embeddings:
            raise ConfigError(
                f"is {length}, but with rope_type dynamic every angle changes with each token "
                f"beyond max_position_embeddings; choose at most {rope.max_position_embeddings}",
                field="context_length",
            )
        frequencies, scale = inverse_frequencies(rope, text.head_dim), np.float32(attention_scale(rope))
        angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
        self._cos, self._sin = np.cos(angles) * scale, np.sin(angles) * scale
        self._columns = np.arange(len(frequencies))
        self._axes = _axes(rope)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[Table, Table]:
        """Positions (..., n) to cosines and sines (..., n, D/2).

        Three axes are an input of (3, C, T): time, height and width apart. Where they agree, as in text,
        (C, T) is the same and faster.
        """
        if positions.ndim < 3:
            return self._cos.take(positions, axis=0), self._sin.take(positions, axis=0)
        if self._axes is None:
            raise ValueError(f"this decoder's positions have one axis, got the shape {positions.shape}")
        places = np.moveaxis(positions, 0, -1)[..., self._axes]  # (C, T, D/2)
        return self._cos[places, self._columns], self._sin[places, self._columns]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Table:
    """Radians per position of each of the D/2 pairs.

    The powers are rounded once, from float64: that is what torch's float32 has, but for a last bit now and then.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(rope.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    return VARIANTS[rope.rope_type](rope, np.float32(1.0) / powers).astype(np.float32)


def attention_scale(rope: RopeConfig) -> float:
    """What YaRN multiplies cosines and sines by, so that attention stays as sharp as it was (arXiv 2309.00071)."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    growth = math.log(_yarn_factor(rope))  # 0 where nothing is stretched
    if rope.mscale and rope.mscale_all_dim:
        return (0.1 * rope.mscale * growth + 1.0) / (0.1 * rope.mscale_all_dim * growth + 1.0)
    return 0.1 * growth + 1.0


def _unchanged(rope: RopeConfig, frequencies: Table) -> Table:
    return frequencies


def _linear(rope: RopeConfig, frequencies: Table) -> Table:
    """Positions closer together by the factor."""
    return frequencies / np.float32(rope.factor)


def _llama3(rope: RopeConfig, frequencies: Table) -> Table:
    """Slow pairs slowed down by the factor, fast ones kept, and a ramp between; speed in turns per old context."""
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    turns = np.float32(rope.original_max_position_embeddings) / (np.float32(2 * math.pi) / frequencies)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / np.float32(rope.factor) + kept * frequencies


def _yarn(rope: RopeConfig, frequencies: Table) -> Table:
    """As llama3, with a ramp over the pair's number instead of its speed."""
    dim = 2 * len(frequencies)

    def pair_with(turns: float) -> float:
        """The pair, as a fraction, that turns so often in the old context."""
        ratio = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(rope.rope_theta))

    first, last = pair_with(rope.beta_fast or 32), pair_with(rope.beta_slow or 1)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    kept = 1 - np.clip((np.arange(len(frequencies), dtype=np.float32) - first) / width, 0, 1)
    slowed = frequencies / np.float32(_yarn_factor(rope))
    return slowed * (1 - kept) + frequencies * kept


def _yarn_factor(rope: RopeConfig) -> float:
    if rope.factor is not None:
        return rope.factor
    return max(rope.max_position_embeddings / rope.original_max_position_embeddings, 1.0)


# Up to max_position_embeddings the dynamic variant is the default one; beyond, there is no table.
VARIANTS: Mapping[str, Callable[[RopeConfig, Table], Table]] = {
    "default": _unchanged,
    "dynamic": _unchanged,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _axes(rope: RopeConfig) -> NDArray[np.int64] | None:
    """Which axis of a position each of the D/2 pairs follows: 0 time, 1 height, 2 width."""
    if rope.mrope_section is None:
        return None
    if not rope.mrope_interleaved:
        return np.repeat(np.arange(3), rope.mrope_section)
    axes = np.zeros(sum(rope.mrope_section), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * rope.mrope_section[axis] : 3] = axis
    return axes
