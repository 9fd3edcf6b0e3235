from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.export.quantize import Bits, pack_int4, quantize, unpack_int4


def weight(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal((outputs, inputs), dtype=np.float32)


def restore(values: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """The definition: a code times the scale of its block, back in the checkpoint's layout."""
    return (values * np.repeat(scales, block, axis=0)).T


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.1), (8, 0.007)])
def test_error_is_small_and_is_what_it_says(bits: Bits, limit: float) -> None:
    original = weight(300, 64)  # more rows than a slab
    quantized = quantize(original, bits, 32)
    lost = np.linalg.norm(restore(quantized.values, quantized.scales, 32) - original)
    assert quantized.error == pytest.approx(lost / np.linalg.norm(original), rel=1e-4)
    assert quantized.error < limit


def test_no_value_is_off_by_more_than_half_a_step_in_eight_bits() -> None:
    original = weight(8, 64, seed=1)
    quantized = quantize(original, 8, 16)
    steps = np.repeat(quantized.scales, 16, axis=0).T
    difference = np.abs(restore(quantized.values, quantized.scales, 16) - original)
    assert (difference <= steps * 0.5 + 1e-6).all()


def test_the_largest_value_of_a_block_is_exact_in_four_bits() -> None:
    original = weight(4, 32, seed=2)
    quantized = quantize(original, 4, 32)
    restored = restore(quantized.values, quantized.scales, 32)
    largest = np.abs(original).argmax(axis=1)
    assert np.allclose(restored[range(4), largest], original[range(4), largest], rtol=1e-6)
    assert (np.abs(restored - original) <= np.abs(quantized.scales).T + 1e-6).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits: Bits) -> None:
    quantized = quantize(np.zeros((4, 32), np.float32), bits, 32)
    assert not quantized.values.any()
    assert quantized.error == 0.0


def test_inputs_must_fill_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        quantize(weight(4, 40), 4, 32)


def test_first_value_is_in_the_low_half() -> None:
    packed = pack_int4(np.array([[1, -2], [-8, 7]], np.int8))
    assert packed.tolist() == [0xE1, 0x78]


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=65))
def test_packing_can_be_undone(codes: list[int]) -> None:
    values = np.array(codes, np.int8)
    packed = pack_int4(values)
    assert packed.nbytes == (len(codes) + 1) // 2
    assert unpack_int4(packed, values.shape).tolist() == codes
