"""Quantised weights: error bounds, the better of two ways where one must be better, packing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from safecode_trt.export.quantize import dequantize, pack_int4, quantize, unpack_int4
from safecode_trt.manifest import Quantization

INT4 = Quantization(bits=4, block_size=32)
INT8 = Quantization(bits=8, block_size=None)
ASYMMETRIC = replace(INT4, symmetric=False)
EVERY = [INT4, ASYMMETRIC, INT8, replace(INT8, block_size=16), replace(INT8, symmetric=False)]
every_way = pytest.mark.parametrize("how", EVERY, ids=str)
finite = st.floats(-1e4, 1e4, width=32)
weights = arrays(np.float32, (3, 64), elements=finite)
seeds = st.integers(0, 10_000)


def weight(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal((outputs, inputs), dtype=np.float32)


def lost(original: np.ndarray, how: Quantization) -> float:
    return float(np.square(dequantize(quantize(original, how)) - original, dtype=np.float64).sum())


@pytest.mark.parametrize(
    ("how", "limit"), [(INT4, 0.1), (ASYMMETRIC, 0.1), (INT8, 0.008), (replace(INT8, block_size=32), 0.007)]
)
def test_error_is_small_and_is_what_it_says(how: Quantization, limit: float) -> None:
    original = weight(300, 64)  # more rows than a slab
    quantized = quantize(original, how)
    difference = np.linalg.norm(dequantize(quantized) - original)
    assert quantized.how.error == pytest.approx(difference / np.linalg.norm(original), rel=1e-4)
    assert quantized.how.error is not None and quantized.how.error < limit
    assert replace(quantized.how, error=None) == how


@given(weights)
@every_way
def test_codes_and_scales_are_those_of_onnx(how: Quantization, original: np.ndarray) -> None:
    """The definition of DequantizeLinear, in a loop."""
    quantized = quantize(original, how)
    block = how.block_size or 64
    restored = dequantize(quantized)
    for row, column in ((0, 0), (1, 31), (2, 63)):
        place = (column // block, row)
        zero = 0 if quantized.zero_points is None else int(quantized.zero_points[place])
        code = int(quantized.values[column, row])
        assert -(1 << (how.bits - 1)) <= code < 1 << (how.bits - 1)
        assert restored[row, column] == np.float32(code - zero) * quantized.scales[place]


@given(weights)
@every_way
def test_no_value_is_off_by_more_than_half_a_step(how: Quantization, original: np.ndarray) -> None:
    quantized = quantize(original, how)
    block = how.block_size or 64
    steps = np.abs(np.repeat(quantized.scales, block, axis=0).T)
    difference = np.abs(dequantize(quantized) - original)
    if how.bits == 4 and how.symmetric:
        # The side that ends at 7 lacks a step: its values may be off by a whole one.
        codes = quantized.values.T
        steps = np.where(codes == 7, steps * 2, steps)
    assert (difference <= steps * np.float32(0.5001) + 1e-30).all()


@given(seeds, st.floats(1.5, 50.0))
def test_zero_points_pay_where_weights_lie_to_one_side(seed: int, shift: float) -> None:
    original = weight(4, 64, seed) + np.float32(shift)
    assert lost(original, ASYMMETRIC) <= lost(original, INT4)


@given(weights)
@every_way
def test_scale_search_is_never_worse(how: Quantization, original: np.ndarray) -> None:
    searched = lost(original, replace(how, method="scale-search"))
    assert searched <= lost(original, how) * (1 + 1e-5)


@pytest.mark.parametrize("how", [INT4, ASYMMETRIC], ids=str)
def test_scale_search_finds_something(how: Quantization) -> None:
    original = weight(64, 128)
    assert lost(original, replace(how, method="scale-search")) < 0.97 * lost(original, how)


def test_the_largest_value_of_a_block_is_exact_in_four_bits() -> None:
    original = weight(4, 32, seed=2)
    restored = dequantize(quantize(original, INT4))
    largest = np.abs(original).argmax(axis=1)
    assert np.allclose(restored[range(4), largest], original[range(4), largest], rtol=1e-6)


@every_way
def test_zeros_stay_zeros(how: Quantization) -> None:
    quantized = quantize(np.zeros((4, 32), np.float32), how)
    assert not dequantize(quantized).any()
    assert quantized.how.error == 0.0


@every_way
def test_values_next_to_nothing_do_no_harm(how: Quantization) -> None:
    assert np.isfinite(dequantize(quantize(np.full((2, 32), 1e-44, np.float32), how))).all()


def test_inputs_must_fill_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        quantize(weight(4, 40), INT4)


def test_first_value_is_in_the_low_half() -> None:
    packed = pack_int4(np.array([[1, -2], [-8, 7]], np.int8))
    assert packed.tolist() == [0xE1, 0x78]


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=65))
def test_packing_can_be_undone(codes: list[int]) -> None:
    values = np.array(codes, np.int8)
    packed = pack_int4(values)
    assert packed.nbytes == (len(codes) + 1) // 2
    assert unpack_int4(packed, values.shape).tolist() == codes
