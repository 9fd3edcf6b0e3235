"""ONNX Runtime's GPU backends on a GPU that is the CPU: the cache on the device, bindings, placement, `auto`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safecode_trt.bundle import Bundle
from safecode_trt.config import Backend, Mode, RuntimeConfig, SamplingParams
from safecode_trt.contract import Geometry
from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError
from safecode_trt.policy import make_policy
from safecode_trt.runtime import device
from safecode_trt.runtime.backends import auto, cuda_stream
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.device_cache import GrowingCache
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.ort_providers import PROVIDERS, load_onnxruntime
from safecode_trt.runtime.backends.stored_floats import StoredFloats
from tests.fake_cudart import FakeCuda
from tests.families import idefics
from tests.family_checkpoints import FamilyCheckpoints

PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
REQUEST = "can i touch it?"
GPU_BACKENDS: tuple[Backend, ...] = ("ort-cuda", "ort-tensorrt")
GEOMETRY = Geometry(
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=3,
    hidden_size=6,
    vocab_size=8,
    context_length=700,
    image_seq_len=0,
)
MakeGpu = Callable[..., FakeCuda]


def config(backend: Backend, **settings: bool) -> RuntimeConfig:
    return RuntimeConfig(backend=backend, threads=1, **settings)


def replies(bundle: Bundle, backend: Backend) -> list[tuple[int, ...]]:
    """What a bundle answers: with contexts that come and go, with a kept prefix, and through sizes of the cache."""
    long = SamplingParams(max_new_tokens=100, ignore_eos=True)
    modes: tuple[Mode, ...] = ("safecode-paper", "safecode", "safecode")
    with Engine.open(bundle.path, config=config(backend)) as engine:
        assert engine.model.session.name == backend
        policies = [make_policy(mode, engine.bundle.manifest.safecode) for mode in modes]
        return [
            tuple(engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=long).token_ids)
            for policy in policies
        ]


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_the_same_tokens_as_on_the_cpu(tiny_bundle: Bundle, gpu: MakeGpu, backend: Backend) -> None:
    expected = replies(tiny_bundle, "ort-cpu")
    cuda = gpu()
    assert replies(tiny_bundle, backend) == expected and len(set(expected[0])) > 8
    assert cuda.calls["cudaMemcpy3DAsync"] > 3 and not cuda.held()


def test_a_family_with_inputs_of_its_own(made: FamilyCheckpoints, gpu: MakeGpu) -> None:
    """What belongs to a row, and what belongs to a token."""
    bundle = made.bundle(idefics.CASE)
    expected = replies(bundle, "ort-cpu")
    gpu()
    assert replies(bundle, "ort-cuda") == expected


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [*GPU_BACKENDS, "ort-trt-rtx"])
def test_the_same_tokens_on_a_real_gpu(tiny_bundle: Bundle, backend: Backend) -> None:
    try:
        load_onnxruntime(PROVIDERS[backend])
        if device.cuda_device() is None:
            pytest.skip("there is no GPU")
    except BackendError as error:
        pytest.skip(str(error))
    assert replies(tiny_bundle, backend) == replies(tiny_bundle, "ort-cpu")


@pytest.fixture
def stream(cuda: FakeCuda) -> Iterator[CudaStream]:
    made = CudaStream()
    yield made
    made.close()


def caches(stream: CudaStream) -> tuple[HostCache, GrowingCache]:
    return HostCache.for_decoder(GEOMETRY, 3, np.float32), GrowingCache(stream, GEOMETRY, 3, "float32")


def content(cache: HostCache | GrowingCache, cuda: FakeCuda) -> np.ndarray:
    """What a cache holds, (4, 3, 2, CAP, 3)."""
    if isinstance(cache, HostCache):
        return cache.data
    shape = (4, 3, 2, cache.capacity, 3)
    for handle in [*cuda.others]:
        cuda.cudaStreamSynchronize(handle)
    return cuda.memory.view(cache.slab(0), 4 * int(np.prod(shape))).view(np.float32).reshape(shape)


operation = st.one_of(
    st.tuples(st.just("reserve"), st.integers(1, 700), st.integers(1, 3)),
    st.tuples(st.just("copy"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("save"), st.integers(0, 2), st.integers(1, 64)),
    st.tuples(st.just("load"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("clear"), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(operation, max_size=8))
def test_the_cache_on_the_device_is_the_one_in_host_memory(operations: list[tuple[str, int, int]]) -> None:
    """Whatever is done to both, what has been written is the same in both, and nothing is ever NaN."""
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_stream, "load_cuda", lambda: cuda)
        stream = CudaStream()
    host, device = caches(stream)
    draw = np.random.default_rng(0)
    filled, saved = 0, None
    for name, first, second in [*operations, ("reserve", 1, 3)]:
        if name == "reserve":
            # Rows beyond those that are kept hold nothing afterwards.
            kept = second if first > host.capacity else 3
            for cache in (host, device):
                cache.reserve(first, rows=kept)
            values = draw.standard_normal((4, 3, 2, host.capacity, 3)).astype(np.float32)
            for cache in (host, device):
                fresh = content(cache, cuda)
                fresh[:, kept:] = values[:, kept:]
                fresh[:, :, :, filled:] = values[:, :, :, filled:]
            filled = host.capacity
        elif name == "clear":
            host.clear()
            device.clear()
            filled = 0
        elif filled == 0:
            continue
        elif name == "copy":
            host.copy_prefix(first, second, filled)
            device.copy_prefix(first, second, filled)
        elif name == "save":
            saved = host.save_prefix(first, second), device.save_prefix(first, second)
        elif saved is not None:
            host.load_prefix(first, saved[0])
            device.load_prefix(first, saved[1])
        assert host.capacity == device.capacity
        assert np.array_equal(content(host, cuda), content(device, cuda))
        assert device.nbytes >= content(device, cuda).nbytes


def test_a_new_cache_is_zero_and_a_full_gpu_is_a_memory_error(cuda: FakeCuda, stream: CudaStream) -> None:
    cuda.room = 20_000
    _, device = caches(stream)
    assert not content(device, cuda).any()
    with pytest.raises(ValueError, match="at most 700"):
        device.reserve(701)
    with pytest.raises(MemoryError, match="the GPU is out of memory"):
        device.reserve(200)
    assert device.capacity == 64 and not content(device, cuda).any()


def test_a_reply_without_room_on_the_gpu_is_the_fallback(tiny_bundle: Bundle, gpu: MakeGpu) -> None:
    gpu(room=40_000)
    with Engine.open(tiny_bundle.path, config=config("ort-cuda")) as engine:
        policy = make_policy("safecode", engine.bundle.manifest.safecode)
        reply = engine.generate(REQUEST, image=PICTURE, policy=policy)
        assert reply.fallback_reason and "memory" in reply.fallback_reason


def test_memory_of_another_backend_is_refused(tiny_bundle: Bundle, gpu: MakeGpu) -> None:
    gpu()
    with (
        Engine.open(tiny_bundle.path, config=config("ort-cuda")) as on_gpu,
        Engine.open(tiny_bundle.path, config=config("ort-cpu")) as on_cpu,
        pytest.raises(TypeError, match="got HostCache"),
    ):
        auto.try_step(_Swapped(on_gpu, on_cpu), tiny_bundle)  # type: ignore[arg-type]


class _Swapped:
    """Takes memory from one engine's session, and decodes on the other's."""

    def __init__(self, decoding: Engine, allocating: Engine) -> None:
        self.decode, self.allocate = decoding.model.session.decode, allocating.model.session.allocate


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    values[:3] = [1 + 2**-8, 1 + 3 * 2**-8, -30000]
    import torch

    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(StoredFloats.of("bfloat16").stored(values), expected)
