"""What a machine has: free memory, and the GPU as the CUDA driver describes it. Needs no CUDA package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safecode_trt.errors import BackendError

__all__ = ["CudaDevice", "check_call", "cuda_device", "free_memory", "load_driver"]

DRIVER = "libcuda.so.1"
MEMINFO = Path("/proc/meminfo")
# The driver API's words for these two, and its code for a machine without a GPU.
MAJOR, MINOR = 75, 76
NO_DEVICE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """The first GPU: its name, its compute capability ("86" is 8.6) and bytes of memory."""

    name: str
    compute_capability: str
    free_memory: int
    total_memory: int


def free_memory() -> int | None:
    """Bytes of main memory that programs can still take; None where the system does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def load_driver() -> Any | None:
    """The CUDA driver's library, initialised; None without a driver or a GPU.

    Raises:
        BackendError: the driver is there and fails.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    if (code := driver.cuInit(0)) == NO_DEVICE:
        return None
    check_call(code, "cuInit")
    return driver


def cuda_device() -> CudaDevice | None:
    """The first GPU; None without a driver or a GPU.

    Raises:
        BackendError: the driver is there and fails.
    """
    if (driver := load_driver()) is None:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    check_call(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    name = ctypes.create_string_buffer(256)
    check_call(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    version = [ctypes.c_int(), ctypes.c_int()]
    for number, attribute in zip(version, (MAJOR, MINOR), strict=True):
        check_call(
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device), "cuDeviceGetAttribute"
        )
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    # Memory is a context's; the primary one is shared with whoever else uses the GPU in this process.
    check_call(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    try:
        check_call(driver.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
        try:
            check_call(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return CudaDevice(
        name=name.value.decode(errors="replace"),
        compute_capability="".join(str(number.value) for number in version),
        free_memory=free.value,
        total_memory=total.value,
    )


def check_call(code: int, call: str) -> None:
    """Raises BackendError if a call of the driver has returned a code."""
    if code:
        raise BackendError(f"the CUDA driver failed in {call} with code {code}; is the GPU in order?")
