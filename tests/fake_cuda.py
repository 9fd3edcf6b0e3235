"""A CUDA driver for tests, in the form of cuda.bindings.driver: device memory is the host's, kernels run on the CPU.

Every function that cuda.py calls is here, and nothing else; what is given out must come back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

from safecode_trt.ops.fused import STEP
from tests.fake_cudart import FakeCuda

__all__ = ["FakeDriver", "Status", "functions"]


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_LAUNCH_FAILED = 719


class Attribute(Enum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 8
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 7


OK = (Status.CUDA_SUCCESS,)


class FakeDriver:
    """One Jetson Orin. `fails` names a function that fails; `held` is what has not been given back.

    With `cuda`, work goes onto its streams and is done when they are waited for; without, it is done at once.
    """

    CUdevice_attribute = Attribute

    def __init__(self, library: ctypes.CDLL, cuda: FakeCuda | None = None) -> None:
        self.library, self.cuda, self.fails = library, cuda, ""
        self.held: dict[int, Any] = {}
        self.retained = self.modules = 0
        self.logits: list[Any] = []  # what the caller keeps alive
        self.launches: list[tuple[bytes, tuple[int, ...], int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name == object.__getattribute__(self, "fails"):
            return lambda *arguments: (Status.CUDA_ERROR_LAUNCH_FAILED,)
        return object.__getattribute__(self, name)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return *OK, 1000 + ordinal

    def cuDeviceGetAttribute(self, attribute: Attribute, device: int) -> tuple[Any, ...]:
        return *OK, attribute.value

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self.retained += 1
        return *OK, self._hold("context", device)

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:
        self.retained -= 1
        return OK if self.retained else self._give_back(device)

    def cuCtxSetCurrent(self, context: int) -> tuple[Any, ...]:
        assert self.held[context] == "context"
        return OK

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        assert image == b"machine code of sm_87"
        self.modules += 1
        return *OK, self._hold("module", self.modules)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, ...]:
        assert self.held[module] == "module"
        return *OK, name

    def cuModuleUnload(self, module: int) -> tuple[Any, ...]:
        return self._give_back(module)

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        # Full of what others have left, as the device's memory is.
        return *OK, self._memory(b"\xab" * size)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return *OK, self._memory(b"\xab" * size)

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        return self._give_back(address)

    def cuMemFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._give_back(address)

    def cuMemsetD8(self, address: int, value: int, size: int) -> tuple[Any, ...]:
        ctypes.memset(address, value, size)
        return OK

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> tuple[Any, ...]:
        ctypes.memmove(target, source, size)
        return OK

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Any, ...]:
        self._put(stream, lambda: ctypes.memmove(target, source, size))
        return OK

    def cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if self.cuda is not None:
            self.cuda.cudaStreamSynchronize(stream)
        return OK

    def cuLaunchKernel(self, kernel: bytes, *arguments: int) -> tuple[Any, ...]:
        *sizes, shared, stream, parameters, extra = arguments
        assert (shared, extra) == (0, 0)
        self.launches.append((kernel, tuple(sizes), stream))
        address = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        assert address is not None
        step = ctypes.create_string_buffer(ctypes.string_at(address, STEP.itemsize))

        def run() -> None:
            assert self.library.launch(kernel, step, sizes[0], sizes[1], 0)

        self._put(stream, run)
        return OK

    def _put(self, stream: int, work: Callable[[], Any]) -> None:
        if self.cuda is None:
            work()
        else:
            self.cuda.put(stream, work)

    def _memory(self, content: bytes) -> int:
        buffer = ctypes.create_string_buffer(content)
        return self._hold(buffer, ctypes.addressof(buffer))

    def _hold(self, thing: Any, handle: int) -> int:
        self.held[handle] = thing
        return handle

    def _give_back(self, handle: int) -> tuple[Any, ...]:
        del self.held[handle]
        return OK


def functions() -> dict[str, Callable[..., Any]]:
    """What cuda.py may call."""
    return {name: call for name, call in vars(FakeDriver).items() if name.startswith("cu")}
