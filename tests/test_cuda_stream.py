"""Memory, copies and graphs of a stream; and that the fake they are tried on is as strict as a GPU, and no richer."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safecode_trt.contract import Geometry
from safecode_trt.errors import BackendError
from safecode_trt.ops.bindings import load_cuda
from safecode_trt.runtime.backends import cuda_stream
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.device_cache import DeviceCache
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.staging_buffer import StagingBuffer
from tests.fake_cudart import FakeCuda, cudaError_t

GEOMETRY = Geometry(
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    hidden_size=16,
    vocab_size=10,
    context_length=96,
    image_seq_len=1,
)


@pytest.fixture
def stream(cuda: FakeCuda) -> Iterator[CudaStream]:
    opened = CudaStream()
    yield opened
    opened.close()


def test_memory_is_given_back_at_the_next_allocation(stream: CudaStream, cuda: FakeCuda) -> None:
    buffer = stream.allocate(4096)
    stream.zero(buffer)
    del buffer
    gc.collect()
    assert cuda.memory.bytes_of("device") == 4096  # the stream has yet to write there
    other = stream.allocate(16)
    assert cuda.memory.bytes_of("device") == other.nbytes == 16


def test_what_is_still_held_comes_back_at_the_end(cuda: FakeCuda) -> None:
    stream = CudaStream()
    held = [stream.allocate(10), stream.allocate_host(10), stream.capture(lambda: None)]
    stream.close()
    stream.close()
    assert cuda.held() == [] and held


def test_a_copy_is_there_when_the_stream_was_waited_for(stream: CudaStream) -> None:
    staging = StagingBuffer(stream)
    layout = {
        "a": ("float32", (2, 3)),
        "none": ("float16", (0, 4)),
        "b": ("int64", (2,)),
        "c": ("bfloat16", (2,)),
    }
    staging.lay(layout)
    values = {
        "a": np.arange(6.0).reshape(2, 3),
        "none": np.zeros((0, 4)),
        "b": np.array([7, -1]),
        "c": np.ones(2),
    }
    for name, value in values.items():
        staging.fill(name, value)
    assert all(address % 256 == 0 for address in staging.addresses().values())
    assert len(set(staging.addresses().values())) == 4
    staging.upload()
    stream.synchronize()
    staging.download()
    assert np.isnan(staging.host["a"]).all()
    stream.synchronize()
    for name in ("a", "none", "b"):
        np.testing.assert_array_equal(staging.host[name], values[name])
    assert staging.host["c"].tolist() == [0x3F80, 0x3F80]


def test_bfloat16_is_rounded_as_torch_does(stream: CudaStream) -> None:
    torch = pytest.importorskip("torch")
    draw = np.random.Generator(np.random.PCG64(1))
    bits = draw.integers(0, 2**32, 10_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate(
        [values[np.isfinite(values)], np.array([0, -0.0, np.inf, -np.inf, -30000, 1.00390625], np.float32)]
    )
    staging = StagingBuffer(stream)
    staging.lay({"x": ("bfloat16", values.shape)})
    staging.fill("x", values)
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(staging.host["x"], wanted)


def test_a_mirror_that_cannot_grow_stays_as_it_was(stream: CudaStream, cuda: FakeCuda) -> None:
    staging = StagingBuffer(stream)
    for call in ("cudaMalloc", "cudaMallocHost"):
        cuda.fails = {call: cudaError_t.cudaErrorMemoryAllocation}
        with pytest.raises(MemoryError, match=f"the GPU is out of memory .{call}.; close other programs"):
            staging.lay({"a": ("float32", (100,))})
    cuda.fails.clear()
    staging.lay({"a": ("float32", (100,))})
    staging.fill("a", np.arange(100.0))
    staging.upload()
    stream.synchronize()


def test_a_graph_is_launched_as_often_as_wanted(stream: CudaStream, cuda: FakeCuda) -> None:
    staging = StagingBuffer(stream)
    staging.lay({"a": ("float32", (4,))})
    graph = stream.capture(staging.upload)
    for value in (1.0, 2.0):
        staging.fill("a", np.full(4, value))
        stream.launch(graph)
        stream.synchronize()
        assert cuda.memory.view(staging.address, 16).view(np.float32).tolist() == [value] * 4
    del graph
    gc.collect()
    stream.allocate(1)
    assert cuda.calls["cudaGraphExecDestroy"] == 1


def test_a_capture_that_fails_leaves_nothing(stream: CudaStream, cuda: FakeCuda) -> None:
    def breaks() -> None:
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        stream.capture(breaks)
    cuda.fails["cudaGraphInstantiate"] = cudaError_t.cudaErrorStreamCaptureUnsupported
    with pytest.raises(
        BackendError, match="cudaGraphInstantiate failed with cudaErrorStreamCaptureUnsupported"
    ):
        stream.capture(lambda: None)
    cuda.fails.clear()
    assert cuda.held() == ["Stream"]
    stream.capture(lambda: None)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_are_copied_as_on_the_host(data: st.DataObject) -> None:
    """Any order of forks, saved and loaded prefixes: the device's memory equals the host's."""
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_stream, "load_cuda", lambda: cuda)
        stream = CudaStream()
    host = HostCache.for_decoder(GEOMETRY, 3, np.float16)
    host.reserve(GEOMETRY.context_length)
    device = DeviceCache(stream, GEOMETRY, 3, "float16")
    assert device.nbytes == host.data.nbytes
    stream.synchronize()
    host.data[:] = np.random.Generator(np.random.PCG64(1)).standard_normal(host.data.shape)
    cuda.memory.view(device.slab(0), device.nbytes)[:] = host.data.view(np.uint8).ravel()
    prefixes = []
    rows, lengths = st.integers(0, 2), st.integers(0, GEOMETRY.context_length)
    for _ in range(data.draw(st.integers(1, 6))):
        action, length = data.draw(st.sampled_from(["copy", "save", "load"])), data.draw(lengths)
        if action == "copy":
            source, target = data.draw(st.permutations(range(3)))[:2]
            for cache in (host, device):
                cache.copy_prefix(source, target, length)
        elif action == "save":
            row = data.draw(rows)
            prefixes.append((host.save_prefix(row, length), device.save_prefix(row, length)))
        elif prefixes:
            row, (of_host, of_device) = data.draw(rows), data.draw(st.sampled_from(prefixes))
            host.load_prefix(row, of_host)
            device.load_prefix(row, of_device)
    stream.synchronize()
    found = cuda.memory.view(device.slab(0), device.nbytes).view(np.float16).reshape(host.data.shape)
    np.testing.assert_array_equal(found, host.data)
    stream.close()
    assert cuda.held() == []


def test_a_cache_is_zero_and_looks_at_as_much_as_the_host_does(stream: CudaStream, cuda: FakeCuda) -> None:
    device, host = DeviceCache(stream, GEOMETRY, 2, "float16"), HostCache.for_decoder(GEOMETRY, 2, np.float16)
    stream.synchronize()
    assert not cuda.memory.view(device.slab(0), device.nbytes).any()
    for positions in (1, 64, 65, 96, 3):
        device.reserve(positions)
        host.reserve(positions)
        assert device.capacity == host.capacity
    device.clear()
    host.clear()
    assert device.capacity == host.capacity
    with pytest.raises(ValueError, match="at most 96 positions, got 97"):
        device.reserve(97)


def test_without_a_gpu_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(module: Any) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)

    put(None)
    with pytest.raises(
        BackendError, match=r"cuda-python is not installed; fix: pip install 'safecode-trt\[cuda\]'"
    ):
        load_cuda()
    put(SimpleNamespace(cudaGetDeviceCount=lambda: (cudaError_t.cudaErrorInsufficientDriver, None)))
    with pytest.raises(BackendError, match=r"no NVIDIA GPU .*cudaErrorInsufficientDriver.*nvidia-smi"):
        load_cuda()
