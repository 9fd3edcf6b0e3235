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

import numpy as np
from numpy.typing import NDArray

__all__ = ["FakeCuda", "cudaError_t", "functions"]

GUARD = 512
Bytes = NDArray[np.uint8]


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
class Piece:
    """Memory that was given out; `data` has guards of `GUARD` bytes on both sides, which nobody may change."""

    kind: str
    data: Bytes
    freed: bool = False

    @property
    def begin(self) -> int:
        return self.data.ctypes.data + GUARD

    @property
    def end(self) -> int:
        return self.begin + len(self.data) - 2 * GUARD

    @property
    def inside(self) -> Bytes:
        return self.data[GUARD:-GUARD]

    def sound(self) -> bool:
        return bool((self.data[:GUARD] == 0xAB).all() and (self.data[-GUARD:] == 0xAB).all())


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
    """`fails` are functions that fail and how; `calls` counts; `compute_capability` is the GPU's."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = cudaMemcpyKind
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamCaptureMode = cudaStreamCaptureMode

    def __init__(self, compute_capability: tuple[int, int] = (8, 6)) -> None:
        self.compute_capability = compute_capability
        self.fails: dict[str, cudaError_t] = {}
        self.calls: dict[str, int] = {}
        self.pieces: list[Piece] = []
        self.others: dict[int, Any] = {}  # streams and graphs by handle
        self.device_bytes = 0
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
        assert all(piece.sound() for piece in self.pieces), "written beside what was given out"
        return [piece.kind for piece in self.pieces if not piece.freed] + [
            type(x).__name__ for x in self.others.values()
        ]

    def view(self, address: int, nbytes: int) -> Bytes:
        """Memory that was given out and is still held."""
        for piece in reversed(self.pieces):
            if piece.begin <= address and address + nbytes <= piece.end:
                assert not piece.freed, f"{piece.kind} memory is used after it was freed"
                start = GUARD + address - piece.begin
                return piece.data[start : start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address:#x} lie outside what was given out")

    def put(self, stream: int, do: Callable[[], None], source: tuple[int, int] | None = None) -> None:
        """Puts work on a stream; `source` is memory that is to hold the same when the work is done as now."""
        found = self.others[stream]
        snapshot = None
        if source is not None and self._kind(source[0]) == "host":
            snapshot = (source[0], self.view(*source).tobytes())
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
        return cudaError_t.cudaSuccess, self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return cudaError_t.cudaSuccess, self._allocate("host", size)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        return self._free(devPtr, "device")

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        return self._free(ptr, "host")

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
                assert self.view(address, len(before)).tobytes() == before, (
                    "locked memory was changed while a copy from it was under way"
                )
            work.do()
        return (cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        self.view(devPtr, count)

        def do() -> None:
            self.view(devPtr, count)[:] = value

        self.put(stream, do)
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Any, ...]:
        self.view(src, count)
        if self._kind(dst) == "host" and self.others[stream].captured is None:
            self.view(dst, count)[:] = 0xFF

        def do() -> None:
            self.view(dst, count)[:] = self.view(src, count)

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
                    assert self._kind(to) == self._kind(at) == "device"
                    self.view(to, extent.width)[:] = self.view(at, extent.width)

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

    # --- memory

    def _allocate(self, kind: str, size: int) -> int:
        assert size > 0
        self._allowed_now()
        data = np.full(size + 2 * GUARD + 256, 0xAB, np.uint8)
        offset = -(data.ctypes.data + GUARD) % 256  # what cudaMalloc gives is a multiple of 256
        piece = Piece(kind, data[offset : offset + size + 2 * GUARD])
        piece.inside[:] = 0xFF  # NaN in every float type
        self.pieces.append(piece)
        self.device_bytes += size if kind == "device" else 0
        return piece.begin

    def _free(self, address: int, kind: str) -> tuple[Any, ...]:
        self._allowed_now()
        (piece,) = [x for x in self.pieces if x.begin == address and not x.freed]
        assert piece.kind == kind
        piece.freed = True  # its bytes are kept, so that nobody else gets the address
        self.device_bytes -= len(piece.inside) if kind == "device" else 0
        return (cudaError_t.cudaSuccess,)

    def _allowed_now(self) -> None:
        streams = [x for x in self.others.values() if isinstance(x, Stream)]
        assert all(stream.captured is None for stream in streams), "memory is managed during a capture"

    def _kind(self, address: int) -> str:
        kinds = [x.kind for x in self.pieces if x.begin <= address < x.end]
        assert kinds, f"{address:#x} lies outside what was given out"
        return kinds[-1]

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
