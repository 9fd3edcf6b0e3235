"""The TensorRT backend on a fake GPU: the tokens of ONNX Runtime, and what happens on the way to them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from safecode_trt.bundle import Bundle
from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.errors import BackendError
from safecode_trt.export import ExportConfig, export_bundle
from safecode_trt.export.engine_config import EngineConfig
from safecode_trt.manifest import DECODER, VISION_ENCODER, Flavour
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Policy
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime import Engine
from safecode_trt.runtime.backends import cuda_stream, trt_decoder
from safecode_trt.runtime.backends.ort import OrtSession
from safecode_trt.runtime.backends.trt import TrtSession
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.prefill import plan_prefill, run_prefill
from safecode_trt.runtime.reply import Reply
from tests.engine_bundle import VERSIONS, add_engines
from tests.fake_cudart import FakeCuda, cudaError_t
from tests.fake_tensorrt import FakeTensorRT
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import write_null_bundle

PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
REQUEST = "can i touch it?"
SHORT = SamplingParams(max_new_tokens=16, ignore_eos=True)
TENSORRT: Flavour = "tensorrt"
RTX: Flavour = "tensorrt-rtx"
# Of a row, of a token, and of the words for the vision encoder.
OWN_INPUTS = [case for case in cases() if case.model_type in ("idefics", "qwen3_vl", "instructblip")]
Packages = dict[Flavour, FakeTensorRT]
Bundles = dict[str, Bundle]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_stream, "load_cuda", lambda: cuda)
    yield cuda
    assert cuda.held() == []


@pytest.fixture(autouse=True)
def packages(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Packages:
    found = {flavour: FakeTensorRT(gpu, VERSIONS[flavour], rtx=flavour == RTX) for flavour in (TENSORRT, RTX)}
    for flavour, package in found.items():
        monkeypatch.setitem(sys.modules, flavour.replace("-", "_"), package)
    return found


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """In fp32, which the fake takes and TensorRT does not: there the tokens of two graphs are the same."""
    old = export_bundle(
        tiny_checkpoint,
        tmp_path_factory.mktemp("old") / "bundle",
        config=ExportConfig(precision="fp16", attention="decomposed", verify=False),
    )

    def made(name: str, source: Bundle, flavour: Flavour, config: Any = None, **settings: Any) -> Bundle:
        return add_engines(source, tmp_path_factory.mktemp(name), flavour, config=config, **settings)

    short = EngineConfig(flavour=TENSORRT, max_picture=(96, 64), max_prefill=9)
    single = replace(short, max_prefill=1024, max_rows=1)
    return {
        TENSORRT: made("tensorrt", tiny_bundle, TENSORRT),
        RTX: made("rtx", tiny_bundle, RTX),
        "short": made("short", tiny_bundle, TENSORRT, short),
        "single": made("single", tiny_bundle, TENSORRT, single),
        "decomposed": made("decomposed", old, TENSORRT, aliases=False),
        "copying": made("copying", tiny_bundle, TENSORRT, not_aliased="present.1.key"),
        "on host": made("on-host", tiny_bundle, TENSORRT, on_host="write_indices"),
    }


@contextmanager
def opened(bundle: Bundle) -> Iterator[Engine]:
    config = RuntimeConfig(
        backend="trt" if bundle.manifest.engines else "ort-cpu", threads=1, check_hashes=False
    )
    with Engine.open(bundle.path, config=config) as engine:
        yield engine


def policies(bundle: Bundle) -> dict[str, Policy]:
    defaults = bundle.manifest.safecode
    cached = replace(PAPER, sigma=1.0, reference="cached")
    return {
        "plain": PLAIN,
        "safecode-paper": make_policy("safecode-paper", defaults),
        "cached": make_policy("safecode", defaults, settings=cached),
    }


def ask(engine: Engine, mode: str = "safecode-paper", sampling: SamplingParams = SHORT) -> Reply:
    return engine.generate(REQUEST, image=PICTURE, policy=policies(engine.bundle)[mode], sampling=sampling)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """The replies of ONNX Runtime."""
    with opened(tiny_bundle) as engine:
        return {mode: ask(engine, mode).token_ids for mode in policies(tiny_bundle)}


@pytest.mark.parametrize("kind", [TENSORRT, RTX, "short"])
def test_the_tokens_are_those_of_onnx_runtime(
    kind: str, bundles: Bundles, expected: dict[str, tuple[int, ...]]
) -> None:
    with opened(bundles[kind]) as engine:
        for mode in [*expected] * 2:  # the second time with memory, graphs and a prefix of the first
            reply = ask(engine, mode)
            assert reply.fallback_reason is None
            assert reply.token_ids == expected[mode], mode


def test_a_decomposed_decoder_writes_elsewhere_and_the_new_positions_are_fetched(bundles: Bundles) -> None:
    """In float16, as on the devices that need it; the fake sees that past and present are not one memory."""
    bundle = bundles["decomposed"]
    replies = []
    for session in (TrtSession(bundle), OrtSession(bundle, threads=1)):
        with Engine(bundle, session) as engine:
            replies.append([ask(engine, mode).token_ids for mode in policies(bundle)])
    assert replies[0] == replies[1]


@pytest.mark.parametrize("seed", range(3))
def test_prefills_forks_and_prefixes_give_the_logits_of_onnx_runtime(
    seed: int, tiny_bundle: Bundle, bundles: Bundles
) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    lengths, shared = draw.integers(12, 60, 3).tolist(), int(draw.integers(0, 12))
    vocab = tiny_bundle.manifest.geometry.vocab_size
    head = draw.integers(0, vocab, shared)
    prompts = [np.concatenate([head, draw.integers(0, vocab, length - shared)]) for length in lengths]

    def run(bundle: Bundle) -> np.ndarray:
        with opened(bundle) as engine:
            rows = [engine.builder.text_row(prompt) for prompt in prompts]
            cache = KVCache(engine.session.allocate(3), rows=3)
            plan = plan_prefill([row.keys for row in rows], [0] * 3, min_shared=4)
            found = [run_prefill(plan, rows, engine.session, cache, engine.builder)]
            prefix = cache.save(2, 10)
            other = KVCache(engine.session.allocate(2), rows=2)
            other.load(1, prefix)
            other.load(0, prefix)
            again = plan_prefill([rows[2].keys, rows[2].keys[:30]], [10, 10], min_shared=999)
            found.append(run_prefill(again, [rows[2], rows[2]], engine.session, other, engine.builder))
            for carried in (3, 2, 1):
                cache.keep(carried)
                cache.require(1)
                found.append(engine.session.decode(engine.builder.step(7, cache), cache.memory).copy())
                cache.advance(np.ones(carried, np.int64))
            return np.concatenate(found)

    kind = (TENSORRT, RTX, "short")[seed]
    np.testing.assert_allclose(run(bundles[kind]), run(tiny_bundle), atol=1e-5)


def test_a_reply_to_the_end_of_the_cache(tiny_bundle: Bundle, bundles: Bundles, gpu: FakeCuda) -> None:
    sampling = replace(SHORT, max_new_tokens=1000)
    with opened(tiny_bundle) as engine:
        wanted = ask(engine, sampling=sampling)
    with opened(bundles[TENSORRT]) as engine:
        reply = ask(engine, sampling=sampling)
        allocated = gpu.calls["cudaMalloc"]
        assert ask(engine, sampling=sampling).token_ids == reply.token_ids
        assert gpu.calls["cudaMalloc"] == allocated
    assert reply.finish_reason == wanted.finish_reason == "capacity"
    assert reply.token_ids == wanted.token_ids and len(set(reply.token_ids)) > 8


def test_steps_are_captured_once_for_each_shape(bundles: Bundles, gpu: FakeCuda, packages: Packages) -> None:
    with opened(bundles[TENSORRT]) as engine:
        ask(engine)
        first = dict(gpu.calls)
        ask(engine)
    # Fifteen steps of two shapes: each shape is executed once, then captured, and replayed.
    assert first["cudaGraphInstantiate"] == gpu.calls["cudaGraphInstantiate"] == 2
    assert first["cudaGraphLaunch"] == 13 and gpu.calls["cudaGraphLaunch"] == 28
    assert gpu.calls["cudaGraphExecDestroy"] == gpu.calls["cudaGraphDestroy"] == 2
    assert not any(execution.keeps_graphs for execution in packages[TENSORRT].executions)


def test_tensorrt_rtx_captures_by_itself(bundles: Bundles, gpu: FakeCuda, packages: Packages) -> None:
    with opened(bundles[RTX]) as engine:
        ask(engine)
    assert "cudaStreamBeginCapture" not in gpu.calls
    steps = [execution.runs for execution in packages[RTX].executions if execution.keeps_graphs]
    assert len(steps) == 1 and len(steps[0]) == 15 and {shape[1] for shape in steps[0]} == {1}


def test_dropping_rows_moves_nothing(bundles: Bundles, gpu: FakeCuda, packages: Packages) -> None:
    policy = policies(bundles[TENSORRT])["safecode-paper"]
    with opened(bundles[TENSORRT]) as engine:
        ask(engine)
        stream = engine.stream(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
        next(stream)
        before = dict(gpu.calls)
        list(stream)
    for call in ("cudaMemcpy3DAsync", "cudaMalloc", "cudaMallocHost", "cudaMemsetAsync"):
        assert gpu.calls[call] == before[call], call
    runs = [shape for execution in packages[TENSORRT].executions for shape in execution.runs]
    assert {shape[0] for shape in runs if shape[1] == 1} == {1, 2}


def test_old_graphs_make_room(
    bundles: Bundles,
    expected: dict[str, tuple[int, ...]],
    packages: Packages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt_decoder, "KEPT_STEPS", 1)
    with opened(bundles[TENSORRT]) as engine:
        assert [ask(engine, mode).token_ids for mode in expected] == list(expected.values())
    made = packages[TENSORRT].executions
    assert len([one for one in made if one.runs and one.runs[-1][1:2] == (1,)]) == 1


def test_what_cannot_be_captured_runs_without_a_graph(
    bundles: Bundles,
    expected: dict[str, tuple[int, ...]],
    packages: Packages,
    caplog: pytest.LogCaptureFixture,
) -> None:
    packages[TENSORRT].fails["capture"] = "a layer waits for the stream"
    with opened(bundles[TENSORRT]) as engine, caplog.at_level(logging.WARNING):
        assert ask(engine).token_ids == expected["safecode-paper"]
    assert [record.message for record in caplog.records] == [
        "decode steps run without a CUDA graph: tensorrt 10.16.1.11 failed to execute decoder: "
        "a layer waits for the stream"
    ]


def test_a_wait_that_is_missing_is_caught(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda
) -> None:
    """The fake is worth its while: without `synchronize` the session reads what no copy has brought yet."""
    with opened(bundles[TENSORRT]) as engine:
        pictures = np.zeros((1, 3, *engine.spec.reference_layout.views[0].size), np.float32)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_stream.CudaStream, "synchronize", lambda self: None)
            features = engine.session.encode({"pixel_values": pictures})["image_features"]
            assert np.isnan(features).all()
            engine.session.encode({"pixel_values": pictures + 1})
        with pytest.raises(AssertionError, match="locked memory was changed"):
            engine.session.encode({"pixel_values": pictures})


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
    bundles: Bundles,
    expected: dict[str, tuple[int, ...]],
    gpu: FakeCuda,
    packages: Packages,
) -> None:
    where, name, how, reason = FAILURES[failure]
    with opened(bundles[flavour]) as engine:
        fails: dict[str, Any] = gpu.fails if where == "cuda" else packages[flavour].fails
        fails[name] = how
        reply = ask(engine)
        assert reply.finish_reason == "fallback" and re.search(reason, reply.fallback_reason or "")
        fails.clear()
        assert ask(engine).token_ids == expected["safecode-paper"]


def test_more_rows_than_the_engine_takes(bundles: Bundles, expected: dict[str, tuple[int, ...]]) -> None:
    with opened(bundles["single"]) as engine:
        assert ask(engine, "plain").token_ids == expected["plain"]
        reply = ask(engine)
    assert reply.fallback_reason is not None
    assert "takes C of 1 to 1, got 2; build it with another --max-rows" in reply.fallback_reason


def test_more_pictures_than_the_engine_takes(bundles: Bundles) -> None:
    with opened(bundles[TENSORRT]) as engine:
        size = engine.spec.reference_layout.views[0].size
        with pytest.raises(
            BackendError, match=r"takes P of 1 to \d+, got 99; build it with another --max-picture"
        ):
            engine.session.encode({"pixel_values": np.zeros((99, 3, *size), np.float32)})


def test_memory_of_another_backend_is_a_mistake(bundles: Bundles, tiny_bundle: Bundle) -> None:
    with opened(bundles[TENSORRT]) as engine, opened(tiny_bundle) as other:
        memory = other.session.allocate(1)
        cache = KVCache(memory, rows=1)
        with pytest.raises(TypeError, match="HostCache"):
            engine.session.decode(engine.builder.step(5, cache), memory)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "copying",
            r"decoder.engine does not write present.1.key to where .* is; build it again: safecode-trt build",
        ),
        ("on host", r"decoder.engine wants write_indices in the host's memory; build it again"),
    ],
)
def test_an_engine_that_is_not_as_needed_is_not_opened(kind: str, message: str, bundles: Bundles) -> None:
    with pytest.raises(BackendError, match=message):
        TrtSession(bundles[kind])


def changed(bundle: Bundle, **entry: Any) -> Bundle:
    (engine,) = bundle.manifest.engines
    return replace(bundle, manifest=replace(bundle.manifest, engines=(replace(engine, **entry),)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"version": "10.3.0"},
            r"of version 10\.3\.0\); run: safecode-trt build .* --flavour tensorrt --sm 86",
        ),
        ({"compute_capabilities": ("87",)}, "for compute capability 87"),
        ({"capacity": 64}, "for 64 positions, the bundle for 256"),
    ],
)
def test_engines_for_something_else_are_not_opened(
    entry: dict[str, Any], message: str, bundles: Bundles
) -> None:
    with pytest.raises(BackendError, match=message):
        TrtSession(changed(bundles[TENSORRT], **entry))


def test_an_engine_of_another_graph_is_not_opened(bundles: Bundles) -> None:
    (engine,) = bundles[TENSORRT].manifest.engines
    swapped = {**engine.graphs, DECODER: engine.graphs[VISION_ENCODER]}
    with pytest.raises(BackendError, match=r"has .* in None where the manifest promises float32"):
        TrtSession(changed(bundles[TENSORRT], graphs=swapped))


def test_no_package_and_no_engines(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    null = Bundle.open(write_null_bundle(tmp_path / "bundle"))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        BackendError, match=r"tensorrt cannot .*'safecode-trt\[trt\]'; tensorrt_rtx cannot .*trt-rtx"
    ):
        TrtSession(null)
    with pytest.raises(
        BackendError, match=r"^tensorrt cannot be imported .*pip install 'safecode-trt\[trt\]'$"
    ):
        TrtSession(bundles[TENSORRT])


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
    where: str, name: str, how: Any, message: str, bundles: Bundles, gpu: FakeCuda, packages: Packages
) -> None:
    fails: dict[str, Any] = gpu.fails if where == "cuda" else packages[TENSORRT].fails
    fails[name] = how
    with pytest.raises(BackendError, match=message):
        TrtSession(bundles[TENSORRT])
    fails.clear()
    assert gpu.held() == []


@pytest.mark.parametrize("case", OWN_INPUTS, ids=lambda case: case.model_type)
def test_families_with_inputs_of_their_own_give_the_tokens_of_onnx_runtime(
    case: FamilyCase, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    bundle = add_engines(made.bundle(case), tmp_path, TENSORRT)
    replies = []
    for session in (TrtSession(bundle), OrtSession(bundle, threads=1)):
        with Engine(bundle, session) as engine:
            replies.append([ask(engine, mode) for mode in ("cached", "safecode-paper")])
            replies[-1].append(engine.generate(REQUEST, sampling=SHORT))
    assert [reply.fallback_reason for reply in replies[0]] == [None] * 3
    assert [reply.token_ids for reply in replies[0]] == [reply.token_ids for reply in replies[1]]
