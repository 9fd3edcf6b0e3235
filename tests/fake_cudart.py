"""A CUDA runtime for tests, in the form of cuda.bindings.runtime: one GPU whose memory is the host's.

Work that is put on a stream is done when the stream is waited for, and not before. What would go wrong on a GPU without
a word is an AssertionError here: reading or writing outside what was given out or after it was freed, changing locked
memory while a copy from it is under way, freeing what work still needs, calls that a capture does not allow. Memory is
given out full of NaN, and locked memory that a copy is to fill holds NaN until then. What is given out must come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from tests.fake_memory import Memory

__all__ = ["FakeCuda", "cudaError_t", "functions"]


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaDeviceAttr(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Work:
    """Something on a stream: what is done, and where from, with what it found there when it was put."""

    do: Callable[[], None]
    snapshot: tuple[int, bytes] | None = None


@dataclass
class Stream:
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None


class FakeCuda:
    """`fails` are functions that fail and how; `calls` counts; `room` is the device's memory in bytes."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = cudaMemcpyKind
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamCaptureMode = cudaStreamCaptureMode

    def __init__(self, compute_capability: tuple[int, int] = (8, 6)) -> None:
        self.compute_capability = compute_capability
        self.fails: dict[str, cudaError_t] = {}
        self.calls: dict[str, int] = {}
        self.memory = Memory()
        self.room = 1 << 40
        self.others: dict[int, Any] = {}  # streams and graphs by handle
        self._next = 1

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value
        self.calls[name] = self.calls.get(name, 0) + 1
        fails = object.__getattribute__(self, "fails")
        return (lambda *arguments: (fails[name], None)) if name in fails else value

    # --- what the tests ask

    def held(self) -> list[str]:
        """What has not come back."""
        return [piece.kind for piece in self.memory.held()] + [type(x).__name__ for x in self.others.values()]

    def pending(self) -> bool:
        """Whether there is work on a stream."""
        return any(isinstance(x, Stream) and x.queue for x in self.others.values())

    def put(self, stream: int, do: Callable[[], None], source: tuple[int, int] | None = None) -> None:
        """Puts work on a stream; `source` is memory that is to hold the same when the work is done as now."""
        found = self.others[stream]
        snapshot = None
        if source is not None and self.memory.kind(source[0]) == "host":
            snapshot = (source[0], self.memory.view(*source).tobytes())
        queue = found.queue if found.captured is None else found.captured
        queue.append(Work(do, snapshot if found.captured is None else None))

    # --- what the sources call

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return cudaError_t.cudaSuccess, 1

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        assert device == 0
        return (cudaError_t.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attr: int, device: int) -> tuple[Any, ...]:
        major = attr == cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return cudaError_t.cudaSuccess, self.compute_capability[0 if major else 1]

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self._allowed_now()
        if self.memory.bytes_of("device") + size > self.room:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return cudaError_t.cudaSuccess, self.memory.allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        self._allowed_now()
        return cudaError_t.cudaSuccess, self.memory.allocate("host", size)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        self._allowed_now()
        self.memory.free(devPtr, "device")
        return (cudaError_t.cudaSuccess,)

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        self._allowed_now()
        self.memory.free(ptr, "host")
        return (cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return cudaError_t.cudaSuccess, self._hold(Stream())

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        assert not self.others.pop(stream).queue, "a stream is destroyed while there is work on it"
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        found = self.others[stream]
        assert found.captured is None, "a stream is waited for while it is captured"
        queue, found.queue = found.queue, []
        for work in queue:
            if work.snapshot is not None:
                address, before = work.snapshot
                assert self.memory.view(address, len(before)).tobytes() == before, (
                    "locked memory was changed while a copy from it was under way"
                )
            work.do()
        return (cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        self.memory.view(devPtr, count)

        def do() -> None:
            self.memory.view(devPtr, count)[:] = value

        self.put(stream, do)
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Any, ...]:
        self.memory.view(src, count)
        if self.memory.kind(dst) == "host" and self.others[stream].captured is None:
            self.memory.view(dst, count)[:] = 0xFF

        def do() -> None:
            self.memory.view(dst, count)[:] = self.memory.view(src, count)

        self.put(stream, do, (src, count))
        return (cudaError_t.cudaSuccess,)

    class cudaMemcpy3DParms:
        __slots__ = ("dstPtr", "extent", "kind", "srcPtr")

    def make_cudaPitchedPtr(self, d: int, p: int, xsz: int, ysz: int) -> Any:
        return SimpleNamespace(ptr=d, pitch=p, ysize=ysz)

    def make_cudaExtent(self, w: int, h: int, d: int) -> Any:
        return SimpleNamespace(width=w, height=h, depth=d)

    def cudaMemcpy3DAsync(self, p: Any, stream: int) -> tuple[Any, ...]:
        # The driver copies the record during the call.
        target, source, extent = p.dstPtr, p.srcPtr, p.extent
        assert p.kind == cudaMemcpyKind.cudaMemcpyDeviceToDevice
        assert extent.width <= min(target.pitch, source.pitch)
        assert extent.height <= min(target.ysize, source.ysize)

        def do() -> None:
            for plane in range(extent.depth):
                for line in range(extent.height):
                    to, at = (x.ptr + (plane * x.ysize + line) * x.pitch for x in (target, source))
                    assert self.memory.kind(to) == self.memory.kind(at) == "device"
                    self.memory.view(to, extent.width)[:] = self.memory.view(at, extent.width)

        self.put(stream, do)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        found = self.others[stream]
        assert found.captured is None
        found.captured = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        found = self.others[stream]
        graph, found.captured = found.captured, None
        return cudaError_t.cudaSuccess, self._hold(Graph(graph))

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return cudaError_t.cudaSuccess, self._hold(GraphExec(list(self.others[graph].work)))

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        assert isinstance(self.others.pop(graph), Graph)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Any, ...]:
        assert isinstance(self.others.pop(graphExec), GraphExec)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any, ...]:
        self.others[stream].queue += self.others[graphExec].work
        return (cudaError_t.cudaSuccess,)

    def _allowed_now(self) -> None:
        streams = [x for x in self.others.values() if isinstance(x, Stream)]
        assert all(stream.captured is None for stream in streams), "memory is managed during a capture"

    def _hold(self, thing: Any) -> int:
        self._next += 1
        self.others[self._next] = thing
        return self._next


@dataclass
class Graph:
    work: list[Work]


@dataclass
class GraphExec:
    work: list[Work]


def functions() -> dict[str, Callable[..., Any]]:
    """What the sources may call."""
    return {
        name: call
        for name, call in vars(FakeCuda).items()
        if callable(call) and not isinstance(call, type) and name.startswith(("cuda", "make_cuda"))
    }
