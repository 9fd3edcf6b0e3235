"""cuda-python, loaded when it is needed, and its failures as ours. Knows nothing of kernels."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from safecode_trt import remedies
from safecode_trt.errors import BackendError

__all__ = ["checked", "load_cuda", "load_driver", "load_nvrtc"]

OUT_OF_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")


def load_driver() -> Any:
    """The CUDA driver's functions, initialised.

    Raises:
        BackendError: cuda-python, the driver or a GPU is missing.
    """
    driver = _load("driver")
    try:
        status = driver.cuInit(0)
    except RuntimeError as error:  # cuda-python looks for the library at the first call
        raise BackendError(
            f"no NVIDIA driver was found ({_first_line(error)})",
            fix="install one, then check it with nvidia-smi",
        ) from error
    checked(status, "cuInit")
    return driver


def load_cuda() -> Any:
    """The functions of the CUDA runtime.

    Raises:
        BackendError: cuda-python, the driver or a GPU is missing.
    """
    cuda = _load("runtime")
    status, _ = cuda.cudaGetDeviceCount()
    if int(status) != 0:
        raise BackendError(
            f"no NVIDIA GPU with a driver for this CUDA was found ({status.name})",
            fix="check it with nvidia-smi",
        )
    return cuda


def load_nvrtc() -> Any:
    """CUDA's compiler for kernels.

    Raises:
        BackendError: cuda-python or the compiler's library is missing.
    """
    nvrtc = _load("nvrtc")
    try:
        checked(nvrtc.nvrtcVersion(), "nvrtcVersion")
    except RuntimeError as error:
        raise BackendError(
            f"CUDA's compiler library NVRTC was not found ({_first_line(error)})",
            fix="pip install 'cuda-python[all]'",
        ) from error
    return nvrtc


def checked(result: tuple[Any, ...], call: str) -> Any:
    """What a call has returned after its status: nothing, one value or a tuple of them.

    Raises:
        MemoryError: the memory of the GPU is not enough.
        BackendError: the status is another than success.
    """
    status, *values = result
    if int(status) != 0:
        if status.name in OUT_OF_MEMORY:
            raise MemoryError(f"the GPU is out of memory ({call}); close other programs that use it")
        raise BackendError(f"{call} failed with {status.name}", fix="check the GPU with nvidia-smi")
    return values[0] if len(values) == 1 else tuple(values) or None


def _load(name: Literal["driver", "nvrtc", "runtime"]) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise BackendError("cuda-python is not installed", fix=remedies.install("cuda")) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".: ")
