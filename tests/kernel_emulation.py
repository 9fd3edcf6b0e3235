"""kernels.cu on the CPU: its own source, compiled as C++, over arrays of the host instead of the device."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from safecode_trt.ops.fused import (
    LEADING,
    OUTCOME,
    FusedChoice,
    FusedSettings,
    make_step,
    read_outcome,
    refusal_bits,
    tiles_of,
)
from safecode_trt.ops.reference import Ids

SOURCES = Path(__file__).parents[1] / "safecode_trt" / "ops"
# A fused product would be another kernel. Memory of a block is read as several types, and threads jump.
EXACT = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
NO_IDS = np.empty(0, np.int64)


def build(folder: Path) -> ctypes.CDLL:
    """Compiles the kernels for this machine, or skips the test where no compiler is."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    target = folder / "kernels.so"
    source = Path(__file__).with_suffix(".cpp")
    arguments = ["-shared", "-fPIC", f"-I{SOURCES}", str(source), "-o", str(target)]
    done = subprocess.run(
        [compiler, *EXACT, *WARNINGS, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    library.launch.restype = ctypes.c_bool
    library.half_logit.restype = ctypes.c_float
    return library


class EmulatedStep:
    """The buffers of one vocabulary and the two launches over them."""

    def __init__(self, library: ctypes.CDLL, vocabulary: int, refusal_ids: Ids = NO_IDS) -> None:
        tiles = tiles_of(vocabulary)
        self._library, self._tiles = library, tiles
        self._buffers: dict[str, NDArray[Any]] = {
            "refusal": refusal_bits(refusal_ids, vocabulary),
            "maxima": np.full(3 * tiles, 0xABABABAB, np.uint32),
            "leading": np.full((tiles, LEADING), 0xABABABABABABABAB, np.uint64),
            "sums": np.full(tiles, np.nan),
            "ticket": np.zeros(1, np.uint32),
            "outcome": np.zeros((), OUTCOME),
        }

    def record(
        self, logits: NDArray[Any], settings: FusedSettings, *, uniform: float = 0.0, order: int = 0
    ) -> NDArray[Any]:
        """What leaves the device after a step over (C, V); `order` shuffles blocks and threads."""
        rows, vocabulary = logits.shape
        half = logits.dtype == np.float16
        step = make_step(settings, rows=rows, vocabulary=vocabulary, half=half, uniform=uniform)
        logits = np.ascontiguousarray(logits)
        for name, buffer in (("logits", logits), *self._buffers.items()):
            step[name] = buffer.ctypes.data
        for entry, grid_rows in (("measure_rows", rows), ("choose_token", 1)):
            pointer = ctypes.c_void_p(step.ctypes.data)
            clean = self._library.launch(entry.encode(), pointer, self._tiles, grid_rows, order)
            assert clean, f"the threads of {entry} wait at different barriers"
        assert self._buffers["ticket"][0] == 0
        return self._buffers["outcome"].copy()

    def run(
        self, logits: NDArray[Any], settings: FusedSettings, *, uniform: float = 0.0, order: int = 0
    ) -> FusedChoice:
        """One step over (C, V)."""
        return read_outcome(self.record(logits, settings, uniform=uniform, order=order), settings)
