"""The fused step on a GPU: logits stay on the device, and the chosen token and its trace leave it.

Needs cuda-python and a driver, which are loaded when a step is made. Knows addresses, rows and streams; nothing of
backends or policies.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import ConfigError
from safecode_trt.ops.bindings import checked, load_driver
from safecode_trt.ops.cubin import load_cubin
from safecode_trt.ops.fused import (
    LEADING,
    MAX_VOCABULARY,
    OUTCOME,
    FusedChoice,
    FusedSettings,
    make_step,
    read_outcome,
    refusal_bits,
    tiles_of,
)
from safecode_trt.ops.reference import Ids

__all__ = ["DeviceStep"]

_THREADS = 256
_MOST_ROWS = 3
_ALIGNMENT = 256


class DeviceStep:
    """The fused step for one vocabulary on one GPU, in the context that TensorRT and the CUDA runtime use too.

    One step at a time: its scratch memory is its own. Close it when the session is closed.

    Raises:
        BackendError: cuda-python, a driver, a GPU or the compiler of the kernels is missing.
        ConfigError: a refusal token is not in the vocabulary, or that is too large.
    """

    def __init__(
        self, *, vocabulary: int, refusal_ids: Ids, device: int = 0, cache: Path | None = None
    ) -> None:
        if not 1 <= vocabulary <= MAX_VOCABULARY:
            raise ConfigError(f"the fused step takes up to {MAX_VOCABULARY} tokens, got {vocabulary}")
        bits = refusal_bits(refusal_ids, vocabulary)
        self._vocabulary, self._tiles = vocabulary, tiles_of(vocabulary)
        self._memory, self._pinned, self._module, self._retained = 0, 0, None, False
        self._driver = load_driver()
        self._device = self._call("cuDeviceGet", device)
        try:
            self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
            self._retained = True
            self._call("cuCtxSetCurrent", self._context)
            self._load(cache)
            self._allocate(bits)
        except BaseException:
            self.close()
            raise

    def run(
        self,
        logits: int,
        *,
        rows: int,
        half: bool,
        settings: FusedSettings,
        uniform: float = 0.0,
        stream: int = 0,
    ) -> FusedChoice:
        """One step over the contiguous logits (C, V) at an address on the device, in float16 (`half`) or float32.

        It runs on `stream` after what is queued there, and returns when it is done. `uniform` is what the sampler's
        generator gives for this token, if the temperature is above 0.

        Raises:
            SteeringError: a logit is NaN or +inf, or no token is left, before or after the stages.
            ConfigError: the device cannot do this step; `why_not_fused` tells beforehand.
            BackendError: a call of the driver has failed.
        """
        self.launch(logits, rows=rows, half=half, settings=settings, uniform=uniform, stream=stream)
        self._call("cuMemcpyDtoHAsync", self._pinned, self._addresses["outcome"], OUTCOME.itemsize, stream)
        self._call("cuStreamSynchronize", stream)
        return read_outcome(self._outcome, settings)

    def launch(
        self, logits: int, *, rows: int, half: bool, settings: FusedSettings, uniform: float, stream: int
    ) -> None:
        """Puts the two kernels of a step on a stream, and waits for nothing; `run` is what fetches the outcome."""
        step = make_step(settings, rows=rows, vocabulary=self._vocabulary, half=half, uniform=uniform)
        step["logits"] = logits
        for name, address in self._addresses.items():
            step[name] = address
        # The driver copies the record during the call.
        parameters = np.array([step.ctypes.data], np.uint64)
        self._call("cuCtxSetCurrent", self._context)
        for kernel, grid_rows in ((self._measure, rows), (self._choose, 1)):
            grid, block = (self._tiles, grid_rows, 1), (_THREADS, 1, 1)
            self._call("cuLaunchKernel", kernel, *grid, *block, 0, stream, parameters.ctypes.data, 0)

    def close(self) -> None:
        """Gives back the memory and the context; a second call does nothing."""
        driver = self._driver
        if self._pinned:
            driver.cuMemFreeHost(self._pinned)
        if self._memory:
            driver.cuMemFree(self._memory)
        if self._module is not None:
            driver.cuModuleUnload(self._module)
        if self._retained:
            driver.cuDevicePrimaryCtxRelease(self._device)
        self._memory, self._pinned, self._module, self._retained = 0, 0, None, False

    def _load(self, cache: Path | None) -> None:
        capability = self._driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", attribute, self._device)
            for attribute in (
                capability.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                capability.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self._module = self._call("cuModuleLoadData", load_cubin(f"sm_{major}{minor}", cache))
        self._measure = self._call("cuModuleGetFunction", self._module, b"measure_rows")
        self._choose = self._call("cuModuleGetFunction", self._module, b"choose_token")

    def _allocate(self, bits: NDArray[np.uint32]) -> None:
        sizes = {
            "refusal": bits.nbytes,
            "maxima": 4 * _MOST_ROWS * self._tiles,
            "leading": 8 * LEADING * self._tiles,
            "sums": 8 * self._tiles,
            "ticket": 4,
            "outcome": OUTCOME.itemsize,
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._memory = int(self._call("cuMemAlloc", end))
        self._addresses = {name: self._memory + offset for name, offset in offsets.items()}
        self._call("cuMemsetD8", self._memory, 0, end)
        self._call("cuMemcpyHtoD", self._addresses["refusal"], bits.ctypes.data, bits.nbytes)
        # The copy back goes on a stream only from memory that is locked.
        self._pinned = int(self._call("cuMemHostAlloc", OUTCOME.itemsize, 0))
        buffer = (ctypes.c_char * OUTCOME.itemsize).from_address(self._pinned)
        self._outcome: NDArray[Any] = np.frombuffer(memoryview(buffer), OUTCOME).reshape(())

    def _call(self, name: str, *arguments: Any) -> Any:
        return checked(getattr(self._driver, name)(*arguments), name)
