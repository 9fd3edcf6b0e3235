"""One GPU, one stream of work on it, and the memory that was given out there. Knows nothing of TensorRT.

What nobody holds any more is given back at the next allocation or at the end, and not at the moment when Python drops
it: that may be while the stream still uses it, or while a graph is captured.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.ops.bindings import checked, load_cuda

__all__ = ["Buffer", "CudaStream", "HostBuffer", "Planes", "StepGraph"]


class _Held:
    """A handle of CUDA's that is given back some time after the last reference to this is gone."""

    def __init__(self, handle: int, drop: Callable[[int], None]) -> None:
        self.handle = handle
        weakref.finalize(self, drop, handle).atexit = False  # the process's end frees everything


class Buffer(_Held):
    """Memory of the device; `handle` is its address."""

    def __init__(self, address: int, nbytes: int, drop: Callable[[int], None]) -> None:
        super().__init__(address, drop)
        self.nbytes = nbytes


class HostBuffer(_Held):
    """Locked memory of the host, from and to which a stream copies; `array` is (bytes,) uint8."""

    def __init__(self, address: int, nbytes: int, drop: Callable[[int], None]) -> None:
        super().__init__(address, drop)
        self.array: NDArray[np.uint8] = np.frombuffer(
            memoryview((ctypes.c_char * nbytes).from_address(address)), np.uint8
        )


class StepGraph(_Held):
    """Work that was captured, to be launched as often as wanted."""


@dataclass(frozen=True, slots=True)
class Planes:
    """Where equal lines of bytes lie: `pitch` bytes from line to line, `lines` lines from plane to plane."""

    address: int
    pitch: int
    lines: int


class CudaStream:
    """The first GPU and a stream of its own. Close it: the GPU keeps what a process has not given back.

    Raises:
        BackendError: cuda-python, a driver or a GPU is missing.
    """

    def __init__(self) -> None:
        self._cuda = load_cuda()
        self._given: dict[int, str] = {}  # handle: how it is given back
        self._dropped: list[int] = []
        self._busy = False
        self._call("cudaSetDevice", 0)
        self.handle = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    @property
    def compute_capability(self) -> str:
        """ "86" is 8.6."""
        names = self._cuda.cudaDeviceAttr
        parts = (names.cudaDevAttrComputeCapabilityMajor, names.cudaDevAttrComputeCapabilityMinor)
        return "".join(str(self._call("cudaDeviceGetAttribute", part, 0)) for part in parts)

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of the device, with anything in it.

        Raises:
            MemoryError: there is not enough.
        """
        return Buffer(self._give("cudaMalloc", "cudaFree", max(nbytes, 1)), nbytes, self._dropped.append)

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Locked memory of the host, with anything in it.

        Raises:
            MemoryError: there is not enough.
        """
        address = self._give("cudaMallocHost", "cudaFreeHost", max(nbytes, 1))
        return HostBuffer(address, max(nbytes, 1), self._dropped.append)

    def zero(self, buffer: Buffer) -> None:
        """Fills memory with zeros, after what is on the stream."""
        self._put("cudaMemsetAsync", buffer.handle, 0, buffer.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copies between any two memories, after what is on the stream."""
        self._put("cudaMemcpyAsync", target, source, nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDefault)

    def copy_planes(self, target: Planes, source: Planes, *, width: int, lines: int, planes: int) -> None:
        """Copies `width` bytes of each of `lines` lines of each plane within the device, in one go."""
        if min(width, lines, planes) == 0:
            return
        job, cuda = self._cuda.cudaMemcpy3DParms(), self._cuda
        job.srcPtr = cuda.make_cudaPitchedPtr(source.address, source.pitch, source.pitch, source.lines)
        job.dstPtr = cuda.make_cudaPitchedPtr(target.address, target.pitch, target.pitch, target.lines)
        job.extent = cuda.make_cudaExtent(width, lines, planes)
        job.kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._put("cudaMemcpy3DAsync", job)

    def working(self) -> int:
        """The stream's handle for someone else's work, which `synchronize` then waits for."""
        self._busy = True
        return self.handle

    def synchronize(self) -> None:
        """Waits for everything on the stream; what was copied to the host is there then.

        Raises:
            BackendError: something on the stream has failed.
        """
        if self._busy:
            self._call("cudaStreamSynchronize", self.handle)
            self._busy = False

    def capture(self, work: Callable[[], None]) -> StepGraph:
        """What `work` puts on the stream, as a graph; nothing is executed.

        Raises:
            BackendError: it cannot be captured.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            _, graph = self._cuda.cudaStreamEndCapture(self.handle)
            if int(graph or 0):
                self._cuda.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", self.handle)
        try:
            handle = self._give("cudaGraphInstantiate", "cudaGraphExecDestroy", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return StepGraph(handle, self._dropped.append)

    def launch(self, graph: StepGraph) -> None:
        """Puts what was captured on the stream."""
        self._busy = True
        self._call("cudaGraphLaunch", graph.handle, self.handle)

    def close(self) -> None:
        """Gives everything back, held or not; a second call does nothing."""
        if not self.handle:
            return
        # A GPU in a state of error says so at every call, and is not to keep the host's memory.
        self._cuda.cudaStreamSynchronize(self.handle)
        for handle, release in self._given.items():
            getattr(self._cuda, release)(handle)
        self._cuda.cudaStreamDestroy(self.handle)
        self._given.clear()
        self.handle = 0

    def _give(self, call: str, release: str, *arguments: Any) -> int:
        self._take_back()
        handle = int(self._call(call, *arguments))
        self._given[handle] = release
        return handle

    def _take_back(self) -> None:
        if self._dropped:
            self.synchronize()
        while self._dropped:
            handle = self._dropped.pop()
            if (release := self._given.pop(handle, None)) is not None:
                self._call(release, handle)

    def _put(self, call: str, *arguments: Any) -> None:
        self._busy = True
        self._call(call, *arguments, self.handle)

    def _call(self, call: str, *arguments: Any) -> Any:
        return checked(getattr(self._cuda, call)(*arguments), call)
