"""What the TensorRT backend says when something is missing or fails, on a fake GPU; and that nothing stays behind."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from safecode_trt.bundle import Bundle
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.trt import TrtSession
from safecode_trt.runtime.backends.trt_engine import Execution
from safecode_trt.runtime.backends.trt_library import TensorRTLibrary
from safecode_trt.runtime.kv_cache import KVCache
from tests.engine_bundle import PICTURE, REQUEST, RTX, SHORT, TENSORRT, EngineBundles, ask, opened, policies
from tests.fake_cudart import FakeCuda, cudaError_t
from tests.fake_tensorrt import FakeTensorRT
from tests.null_bundle import write_null_bundle

pytestmark = pytest.mark.usefixtures("packages")

Packages = dict[Flavour, FakeTensorRT]
Tokens = dict[str, tuple[int, ...]]

FAILURES = {
    "no memory for a cache": ("cuda", "cudaMalloc", cudaError_t.cudaErrorMemoryAllocation, "out of memory"),
    "no locked memory": ("cuda", "cudaMallocHost", cudaError_t.cudaErrorMemoryAllocation, "out of memory"),
    "a kernel that breaks": (
        "cuda",
        "cudaStreamSynchronize",
        cudaError_t.cudaErrorIllegalAddress,
        "cudaStreamSynchronize failed with cudaErrorIllegalAddress",
    ),
    "an execution that is refused": (
        "trt",
        "execute_async_v3",
        "no kernel",
        "failed to execute .*: no kernel",
    ),
    "an execution without memory": (
        "trt",
        "create_execution_context",
        "CUDA out of memory.",
        "out of memory",
    ),
    "a profile that is refused": ("trt", "set_optimization_profile_async", "no", "does not take profile"),
    "an address that is refused": (
        "trt",
        "set_tensor_address",
        "odd",
        "does not take an address for .*: odd",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("flavour", [TENSORRT, RTX])
def test_a_reply_that_fails_falls_back_and_the_next_one_is_right(
    failure: str,
    flavour: Flavour,
    engine_bundles: EngineBundles,
    ort_tokens: Tokens,
    cuda: FakeCuda,
    packages: Packages,
) -> None:
    where, name, how, reason = FAILURES[failure]
    with opened(engine_bundles[flavour]) as engine:
        fails: dict[str, Any] = cuda.fails if where == "cuda" else packages[flavour].fails
        fails[name] = how
        reply = ask(engine)
        assert reply.finish_reason == "fallback" and re.search(reason, reply.fallback_reason or "")
        fails.clear()
        assert ask(engine).token_ids == ort_tokens["safecode-paper"]


def test_a_cache_that_is_too_small_makes_room_for_a_larger_one(
    engine_bundles: EngineBundles, ort_tokens: Tokens, cuda: FakeCuda
) -> None:
    with opened(engine_bundles[TENSORRT]) as engine:
        ask(engine)  # all but the cache is as large as it will be
        engine.model.forget()
        ask(engine, "plain")
        (small,) = engine.model._idle
        cuda.room = cuda.memory.bytes_of("device") + 2 * small.nbytes
        assert small.rows == 1
        del small
        assert ask(engine).token_ids == ort_tokens["safecode-paper"]
        cuda.room -= 1
        engine.model.forget()
        reply = ask(engine)
    assert reply.finish_reason == "fallback" and "out of memory" in (reply.fallback_reason or "")


@pytest.mark.parametrize("flavour", [TENSORRT, RTX])
def test_a_step_that_fails_is_no_start_for_a_graph(
    flavour: Flavour, engine_bundles: EngineBundles, ort_tokens: Tokens, cuda: FakeCuda, packages: Packages
) -> None:
    """What the failed reply has used is given back, and the next one gets it at the same addresses."""
    cuda.memory.reuses = True
    policy = policies(engine_bundles[flavour])["safecode-paper"]
    with opened(engine_bundles[flavour]) as engine:
        for _ in range(2):
            stream = engine.stream(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
            next(stream)
            packages[flavour].fails["execute_async_v3"] = "no"
            *_, last = stream
            assert last.reply is not None and last.reply.finish_reason == "fallback"
            packages[flavour].fails.clear()
        assert ask(engine).token_ids == ort_tokens["safecode-paper"]


def test_more_rows_than_the_engine_takes(engine_bundles: EngineBundles, ort_tokens: Tokens) -> None:
    with opened(engine_bundles["single"]) as engine:
        assert ask(engine, "plain").token_ids == ort_tokens["plain"]
        reply = ask(engine)
    assert reply.fallback_reason is not None
    assert (
        "takes 1 to 1 contexts, got 2; fix: build it again with another --max-rows" in reply.fallback_reason
    )


def test_more_pictures_than_the_engine_takes(engine_bundles: EngineBundles) -> None:
    with opened(engine_bundles[TENSORRT]) as engine:
        size = engine.model.spec.reference_layout.views[0].size
        with pytest.raises(
            BackendError, match=r"takes 1 to \d+ of P, got 99; fix: build it again with another --max-picture"
        ):
            engine.model.session.encode({"pixel_values": np.zeros((99, 3, *size), np.float32)})


def test_an_output_without_a_shape_is_said(packages: Packages) -> None:
    library = TensorRTLibrary(TENSORRT, "11.4", packages[TENSORRT])
    unsure: Any = SimpleNamespace(get_tensor_shape=lambda name: (2, -1))
    execution = Execution(library, "vision_encoder", unsure, CudaStream())
    with pytest.raises(
        BackendError, match=r"tensorrt 11.4 knows no shape of image_features in vision_encoder"
    ):
        execution.output_shape("image_features")
    execution._stream.close()


def test_memory_of_another_backend_is_a_mistake(engine_bundles: EngineBundles, tiny_bundle: Bundle) -> None:
    with opened(engine_bundles[TENSORRT]) as engine, opened(tiny_bundle) as other:
        memory = other.model.session.allocate(1)
        cache = KVCache(memory, rows=1)
        with pytest.raises(TypeError, match="HostCache"):
            engine.model.session.decode(engine.model.builder.step(5, cache), memory)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "copying",
            r"decoder.engine does not write present.1.key to where .* is; fix: safecode-trt build .*bundle",
        ),
        ("on host", r"decoder.engine wants write_indices in the host's memory; fix: safecode-trt build"),
    ],
)
def test_an_engine_that_is_not_as_needed_is_not_opened(
    kind: str, message: str, engine_bundles: EngineBundles
) -> None:
    with pytest.raises(BackendError, match=message):
        TrtSession(engine_bundles[kind])


def changed(bundle: Bundle, **entry: Any) -> Bundle:
    (engine,) = bundle.manifest.engines
    return replace(bundle, manifest=replace(bundle.manifest, engines=(replace(engine, **entry),)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"version": "10.3.0"},
            r"of version 10\.3\.0\); fix: safecode-trt build .* --flavour tensorrt --sm 86",
        ),
        ({"compute_capabilities": ("87",)}, "for compute capability 87"),
        ({"capacity": 64}, "for 64 positions, the bundle for 256"),
    ],
)
def test_engines_for_something_else_are_not_opened(
    entry: dict[str, Any], message: str, engine_bundles: EngineBundles
) -> None:
    with pytest.raises(BackendError, match=message):
        TrtSession(changed(engine_bundles[TENSORRT], **entry))


def test_rows_that_cannot_be_bound_are_refused(engine_bundles: EngineBundles) -> None:
    bundle = changed(engine_bundles[TENSORRT], capacity=97)
    geometry = replace(bundle.manifest.geometry, context_length=97)
    bundle = replace(bundle, manifest=replace(bundle.manifest, geometry=geometry))
    with pytest.raises(
        BackendError, match=r"a row of the cache has \d+ bytes.* --context-length that \d+ divides"
    ):
        TrtSession(bundle)


def test_an_engine_of_another_graph_is_not_opened(engine_bundles: EngineBundles) -> None:
    (engine,) = engine_bundles[TENSORRT].manifest.engines
    swapped = {**engine.graphs, DECODER: engine.graphs[VISION_ENCODER]}
    with pytest.raises(BackendError, match=r"has .* in None where the manifest promises float32"):
        TrtSession(changed(engine_bundles[TENSORRT], graphs=swapped))


def test_no_package_and_no_engines(
    engine_bundles: EngineBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = Bundle.open(write_null_bundle(tmp_path / "bundle"))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        BackendError,
        match=r"tensorrt cannot .*; tensorrt_rtx cannot .*fix: .*'safecode-trt\[trt\]', or .*trt-rtx",
    ):
        TrtSession(null)
    with pytest.raises(
        BackendError, match=r"^tensorrt cannot be imported .*pip install 'safecode-trt\[trt\]'$"
    ):
        TrtSession(engine_bundles[TENSORRT])


@pytest.mark.parametrize(
    ("where", "name", "how", "message"),
    [
        ("cuda", "cudaMalloc", cudaError_t.cudaErrorMemoryAllocation, "do not fit: the GPU is out of memory"),
        ("cuda", "cudaStreamCreateWithFlags", cudaError_t.cudaErrorNoDevice, "cudaErrorNoDevice"),
        ("trt", "deserialize_cuda_engine", "bad magic", "does not load .*vision_encoder.engine: bad magic"),
        ("trt", "deserialize_cuda_engine", "OutOfMemory: 3 GiB", "do not fit: .*OutOfMemory: 3 GiB"),
        ("trt", "create_execution_context", "no", "makes no execution of vision_encoder.engine: no"),
    ],
)
def test_what_fails_while_it_is_opened_holds_nothing(
    where: str,
    name: str,
    how: Any,
    message: str,
    engine_bundles: EngineBundles,
    cuda: FakeCuda,
    packages: Packages,
) -> None:
    fails: dict[str, Any] = cuda.fails if where == "cuda" else packages[TENSORRT].fails
    fails[name] = how
    with pytest.raises(BackendError, match=message):
        TrtSession(engine_bundles[TENSORRT])
    fails.clear()
    assert cuda.held() == []
