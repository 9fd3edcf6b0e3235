"""Memory of the first GPU through the CUDA driver: allocated, zeroed, and copied in blocks. Needs no CUDA package.

It lies in the primary context, which ONNX Runtime uses too. Every call returns when it is done, and expects that
nothing else works on the same memory: ONNX Runtime's runs end with their stream.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import BackendError
from safecode_trt.runtime.device import check_call, load_driver

__all__ = ["Block", "CudaBuffer", "CudaMemory"]

DEVICE = 2  # CU_MEMORYTYPE_DEVICE
OUT_OF_MEMORY = 2


class Memcpy3D(ctypes.Structure):
    """The driver's CUDA_MEMCPY3D."""

    _fields_ = [
        *((f"src_{name}", ctypes.c_size_t) for name in ("x", "y", "z", "lod")),
        ("src_type", ctypes.c_uint),
        ("src_host", ctypes.c_void_p),
        ("src_device", ctypes.c_uint64),
        ("src_array", ctypes.c_void_p),
        ("src_reserved", ctypes.c_void_p),
        ("src_pitch", ctypes.c_size_t),
        ("src_height", ctypes.c_size_t),
        *((f"dst_{name}", ctypes.c_size_t) for name in ("x", "y", "z", "lod")),
        ("dst_type", ctypes.c_uint),
        ("dst_host", ctypes.c_void_p),
        ("dst_device", ctypes.c_uint64),
        ("dst_array", ctypes.c_void_p),
        ("dst_reserved", ctypes.c_void_p),
        ("dst_pitch", ctypes.c_size_t),
        ("dst_height", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Where a block of lines begins: `pitch` bytes from line to line, `lines` lines from plane to plane."""

    address: int
    pitch: int
    lines: int


class CudaBuffer:
    """Bytes on the GPU, zero at first; given back when nobody holds the buffer any more."""

    def __init__(self, memory: CudaMemory, size: int) -> None:
        self.size = size
        self.address = memory.allocate(size)
        weakref.finalize(self, memory.free, self.address).atexit = False  # the end of the process frees all
        memory.zero(self.address, size)


class CudaMemory:
    """The memory of the first GPU.

    Raises:
        BackendError: there is no driver, no GPU, or the driver fails.
    """

    def __init__(self) -> None:
        driver = load_driver()
        if driver is None:
            raise BackendError("no NVIDIA driver or no GPU was found; check them with: nvidia-smi")
        self._driver: Any = driver
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        check_call(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
        check_call(
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device), "cuDevicePrimaryCtxRetain"
        )
        weakref.finalize(self, driver.cuDevicePrimaryCtxRelease_v2, device).atexit = False

    def buffer(self, size: int) -> CudaBuffer:
        """So many bytes of zeros.

        Raises:
            MemoryError: the GPU has no room for them.
        """
        return CudaBuffer(self, size)

    def allocate(self, size: int) -> int:
        """The address of so many bytes; `free` gives them back."""
        address = ctypes.c_uint64()
        with self._current():
            code = self._driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size))
        if code == OUT_OF_MEMORY:
            raise MemoryError(f"the GPU has no memory left for {size} bytes of the key/value cache")
        check_call(code, "cuMemAlloc")
        return address.value

    def free(self, address: int) -> None:
        """Gives bytes back; what the driver says of that nobody could act on."""
        with self._current():
            self._driver.cuMemFree_v2(ctypes.c_uint64(address))

    def zero(self, address: int, size: int) -> None:
        with self._current():
            code = self._driver.cuMemsetD8_v2(
                ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size)
            )
            check_call(code, "cuMemsetD8")
            check_call(self._driver.cuCtxSynchronize(), "cuCtxSynchronize")

    def write(self, buffer: CudaBuffer, value: NDArray[Any]) -> None:
        """Copies an array to the start of a buffer."""
        data = np.ascontiguousarray(value)
        with self._current():
            code = self._driver.cuMemcpyHtoD_v2(
                ctypes.c_uint64(buffer.address),
                ctypes.c_void_p(data.ctypes.data),
                ctypes.c_size_t(data.nbytes),
            )
            check_call(code, "cuMemcpyHtoD")

    def read(self, buffer: CudaBuffer, value: NDArray[Any]) -> None:
        """Copies the start of a buffer into a contiguous array, behind all work of the GPU so far."""
        with self._current():
            check_call(self._driver.cuCtxSynchronize(), "cuCtxSynchronize")
            code = self._driver.cuMemcpyDtoH_v2(
                ctypes.c_void_p(value.ctypes.data),
                ctypes.c_uint64(buffer.address),
                ctypes.c_size_t(value.nbytes),
            )
            check_call(code, "cuMemcpyDtoH")

    def copy(self, source: Block, target: Block, *, width: int, height: int, depth: int) -> None:
        """Copies `depth` planes of `height` lines of `width` bytes; the two must not overlap."""
        order = Memcpy3D(
            src_type=DEVICE,
            src_device=source.address,
            src_pitch=source.pitch,
            src_height=source.lines,
            dst_type=DEVICE,
            dst_device=target.address,
            dst_pitch=target.pitch,
            dst_height=target.lines,
            width=width,
            height=height,
            depth=depth,
        )
        with self._current():
            check_call(self._driver.cuMemcpy3D_v2(ctypes.byref(order)), "cuMemcpy3D")
            # Between two places on the device it returns at once.
            check_call(self._driver.cuCtxSynchronize(), "cuCtxSynchronize")

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The primary context in this thread, whatever another library has there."""
        check_call(self._driver.cuCtxPushCurrent_v2(self._context), "cuCtxPushCurrent")
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
