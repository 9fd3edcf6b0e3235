"""The fake GPU that the TensorRT backend is tried on is as strict as a real one, and has no names of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from safecode_trt.runtime.backends.cuda_stream import CudaStream, Planes
from tests import fake_tensorrt
from tests.fake_cudart import FakeCuda, cudaError_t, functions


@pytest.fixture
def stream(cuda: FakeCuda) -> Iterator[CudaStream]:
    opened = CudaStream()
    yield opened
    opened.close()


def test_the_fake_sees_what_a_gpu_does_not(stream: CudaStream, cuda: FakeCuda) -> None:
    buffer, host = stream.allocate(512), stream.allocate_host(512)
    with pytest.raises(AssertionError, match="outside what was given out"):
        stream.copy(buffer.handle, host.handle, 513)
        stream.synchronize()
    with pytest.raises(AssertionError, match="outside what was given out"):
        stream.copy_planes(
            Planes(buffer.handle, 64, 8), Planes(buffer.handle, 64, 9), width=64, lines=8, planes=2
        )
        stream.synchronize()
    stream.copy(buffer.handle, host.handle, 512)
    host.array[3] = 1
    with pytest.raises(AssertionError, match="changed while a copy from it was under way"):
        stream.synchronize()
    stream.copy(buffer.handle, host.handle, 512)
    cuda.cudaFree(buffer.handle)
    with pytest.raises(AssertionError, match="used after it was freed"):
        stream.synchronize()
    stream._given.pop(buffer.handle)
    calls: list[Callable[[], Any]] = [
        lambda: stream.allocate(1),
        lambda: cuda.cudaStreamSynchronize(stream.handle),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="capture"):
            stream.capture(call)
    assert cuda.held() == ["host", "Stream"]
    piece = cuda.memory.pieces[-1]
    piece.data[0] = 0
    with pytest.raises(AssertionError, match="written beside"):
        cuda.held()
    piece.data[0] = 0xAB


def test_cuda_python_has_what_the_fake_offers() -> None:
    """And so what is called, with as many arguments."""
    real = pytest.importorskip("cuda.bindings.runtime")
    for name, fake in functions().items():
        wanted = list(inspect.signature(fake).parameters)[1:]
        assert list(inspect.signature(getattr(real, name)).parameters) == wanted, name
    for name in ("cudaMemcpyKind", "cudaDeviceAttr", "cudaStreamCaptureMode"):
        for member in getattr(FakeCuda, name):
            assert int(getattr(getattr(real, name), member.name)) == member.value
    for status in cudaError_t:
        assert int(getattr(real.cudaError_t, status.name)) == status.value
    assert real.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    job = real.cudaMemcpy3DParms()
    job.srcPtr = job.dstPtr = real.make_cudaPitchedPtr(4096, 64, 64, 3)
    job.extent = real.make_cudaExtent(8, 3, 2)
    job.kind = real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    assert (int(job.srcPtr.ptr), job.srcPtr.pitch, job.srcPtr.ysize, job.extent.depth) == (4096, 64, 3, 2)


@pytest.mark.trt
def test_tensorrt_rtx_has_what_the_fake_offers() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    classes = ("Runtime", "ICudaEngine", "IRuntimeConfig", "IExecutionContext", "ILogger")
    enums = (
        "DataType",
        "TensorLocation",
        "ExecutionContextAllocationStrategy",
        "CudaGraphStrategy",
    )
    own = {"IExecutionContext": {"keeps_graphs", "runs"}}
    for name in classes:
        fake = getattr(fake_tensorrt, name)
        offered = {x for x in vars(fake) if not x.startswith("_")} - own.get(name, set())
        assert offered <= set(dir(getattr(real, name))), name
    for name in enums:
        for member in getattr(fake_tensorrt, name):
            assert int(getattr(getattr(real, name), member.name)) == member.value, (name, member)
