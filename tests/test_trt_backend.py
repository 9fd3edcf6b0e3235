"""The TensorRT backend on a fake GPU: the tokens of ONNX Runtime, and what happens on the way to them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from safecode_trt.bundle import Bundle
from safecode_trt.engine import Engine
from safecode_trt.engine_entry import Flavour
from safecode_trt.runtime.backends import cuda_stream, trt_decoder
from safecode_trt.runtime.backends.ort import OrtSession
from safecode_trt.runtime.backends.trt import TrtSession
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.model import Model
from safecode_trt.runtime.prefill import plan_prefill, run_prefill
from tests.engine_bundle import (
    PICTURE,
    REQUEST,
    RTX,
    SHORT,
    TENSORRT,
    EngineBundles,
    add_engines,
    ask,
    opened,
    policies,
)
from tests.fake_cudart import FakeCuda
from tests.fake_tensorrt import FakeTensorRT
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints

pytestmark = pytest.mark.usefixtures("packages")

Packages = dict[Flavour, FakeTensorRT]
Tokens = dict[str, tuple[int, ...]]
# Of a row, of a token, and of the words for the vision encoder.
OWN_INPUTS = [case for case in cases() if case.model_type in ("idefics", "qwen3_vl", "instructblip")]


@pytest.mark.parametrize("kind", [TENSORRT, RTX, "short"])
def test_the_tokens_are_those_of_onnx_runtime(
    kind: str, engine_bundles: EngineBundles, ort_tokens: Tokens
) -> None:
    with opened(engine_bundles[kind]) as engine:
        for mode in [*ort_tokens] * 2:  # the second time with memory, graphs and a prefix of the first
            reply = ask(engine, mode)
            assert reply.fallback_reason is None
            assert reply.token_ids == ort_tokens[mode], mode


def test_a_decomposed_decoder_writes_elsewhere_and_the_new_positions_are_fetched(
    engine_bundles: EngineBundles,
) -> None:
    """In float16, as on the devices that need it; the fake sees that past and present are not one memory."""
    bundle = engine_bundles["decomposed"]
    replies = []
    for session in (TrtSession(bundle), OrtSession(bundle, threads=1)):
        with Engine(Model(bundle, session)) as engine:
            replies.append([ask(engine, mode).token_ids for mode in policies(bundle)])
    assert replies[0] == replies[1]


@pytest.mark.parametrize("seed", range(3))
def test_prefills_forks_and_prefixes_give_the_logits_of_onnx_runtime(
    seed: int, tiny_bundle: Bundle, engine_bundles: EngineBundles
) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    lengths, shared = draw.integers(12, 60, 3).tolist(), int(draw.integers(0, 12))
    vocab = tiny_bundle.manifest.geometry.vocab_size
    head = draw.integers(0, vocab, shared)
    prompts = [np.concatenate([head, draw.integers(0, vocab, length - shared)]) for length in lengths]

    def run(bundle: Bundle) -> np.ndarray:
        with opened(bundle) as engine:
            rows = [engine.model.builder.text_row(prompt) for prompt in prompts]
            cache = KVCache(engine.model.session.allocate(3), rows=3)
            plan = plan_prefill([row.keys for row in rows], [0] * 3, min_shared=4)
            found = [run_prefill(plan, rows, engine.model.session, cache, engine.model.builder)]
            prefix = cache.save(2, 10)
            other = KVCache(engine.model.session.allocate(2), rows=2)
            other.load(1, prefix)
            other.load(0, prefix)
            again = plan_prefill([rows[2].keys, rows[2].keys[:30]], [10, 10], min_shared=999)
            found.append(
                run_prefill(again, [rows[2], rows[2]], engine.model.session, other, engine.model.builder)
            )
            for carried in (3, 2, 1):
                cache.keep(carried)
                cache.require(1)
                found.append(
                    engine.model.session.decode(engine.model.builder.step(7, cache), cache.memory)
                    .logits[:, 0]
                    .copy()
                )
                cache.advance(np.ones(carried, np.int64))
            return np.concatenate(found)

    kind = (TENSORRT, RTX, "short")[seed]
    np.testing.assert_allclose(run(engine_bundles[kind]), run(tiny_bundle), atol=1e-5)


def test_a_reply_to_the_end_of_the_cache(
    tiny_bundle: Bundle, engine_bundles: EngineBundles, cuda: FakeCuda
) -> None:
    sampling = replace(SHORT, max_new_tokens=1000)
    with opened(tiny_bundle) as engine:
        wanted = ask(engine, sampling=sampling)
    with opened(engine_bundles[TENSORRT]) as engine:
        reply = ask(engine, sampling=sampling)
        allocated = cuda.calls["cudaMalloc"]
        assert ask(engine, sampling=sampling).token_ids == reply.token_ids
        assert cuda.calls["cudaMalloc"] == allocated
    assert reply.finish_reason == wanted.finish_reason == "capacity"
    assert reply.token_ids == wanted.token_ids and len(set(reply.token_ids)) > 8


def test_steps_are_captured_once_for_each_shape(
    engine_bundles: EngineBundles, cuda: FakeCuda, packages: Packages
) -> None:
    with opened(engine_bundles[TENSORRT]) as engine:
        ask(engine)
        first = dict(cuda.calls)
        ask(engine)
    # Fifteen steps of two shapes: each shape is executed once, then captured, and replayed.
    assert first["cudaGraphInstantiate"] == cuda.calls["cudaGraphInstantiate"] == 2
    assert first["cudaGraphLaunch"] == 13 and cuda.calls["cudaGraphLaunch"] == 28
    assert cuda.calls["cudaGraphExecDestroy"] == cuda.calls["cudaGraphDestroy"] == 2
    assert not any(execution.keeps_graphs for execution in packages[TENSORRT].executions)


def test_a_graph_serves_other_memory_at_its_addresses(
    engine_bundles: EngineBundles, ort_tokens: Tokens, cuda: FakeCuda
) -> None:
    cuda.memory.reuses = True
    with opened(engine_bundles[TENSORRT]) as engine:
        ask(engine)
        engine.model.forget()
        assert ask(engine).token_ids == ort_tokens["safecode-paper"]
    assert cuda.calls["cudaGraphInstantiate"] == 2


def test_tensorrt_rtx_captures_by_itself(
    engine_bundles: EngineBundles, cuda: FakeCuda, packages: Packages
) -> None:
    with opened(engine_bundles[RTX]) as engine:
        ask(engine)
    assert "cudaStreamBeginCapture" not in cuda.calls
    steps = [execution.runs for execution in packages[RTX].executions if execution.keeps_graphs]
    assert len(steps) == 1 and len(steps[0]) == 15 and {shape[1] for shape in steps[0]} == {1}


def test_dropping_rows_moves_nothing(
    engine_bundles: EngineBundles, cuda: FakeCuda, packages: Packages
) -> None:
    policy = policies(engine_bundles[TENSORRT])["safecode-paper"]
    with opened(engine_bundles[TENSORRT]) as engine:
        ask(engine)
        stream = engine.stream(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
        next(stream)
        before = dict(cuda.calls)
        list(stream)
    for call in ("cudaMemcpy3DAsync", "cudaMalloc", "cudaMallocHost", "cudaMemsetAsync"):
        assert cuda.calls[call] == before[call], call
    runs = [shape for execution in packages[TENSORRT].executions for shape in execution.runs]
    assert {shape[0] for shape in runs if shape[1] == 1} == {1, 2}


def test_old_graphs_make_room(
    engine_bundles: EngineBundles,
    ort_tokens: Tokens,
    packages: Packages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt_decoder, "KEPT_STEPS", 1)
    with opened(engine_bundles[TENSORRT]) as engine:
        assert [ask(engine, mode).token_ids for mode in ort_tokens] == list(ort_tokens.values())
    made = packages[TENSORRT].executions
    assert len([one for one in made if one.runs and one.runs[-1][1:2] == (1,)]) == 1


def test_what_cannot_be_captured_runs_without_a_graph(
    engine_bundles: EngineBundles,
    ort_tokens: Tokens,
    packages: Packages,
    caplog: pytest.LogCaptureFixture,
) -> None:
    packages[TENSORRT].fails["capture"] = "a layer waits for the stream"
    with opened(engine_bundles[TENSORRT]) as engine, caplog.at_level(logging.WARNING):
        assert ask(engine).token_ids == ort_tokens["safecode-paper"]
    assert [record.message for record in caplog.records if "graph" in record.message] == [
        "decode steps run without a CUDA graph: tensorrt 10.16.1.11 failed to execute decoder: "
        "a layer waits for the stream"
    ]


def test_a_wait_that_is_missing_is_caught(
    engine_bundles: EngineBundles, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda
) -> None:
    """The fake is worth its while: without `synchronize` the session reads what no copy has brought yet."""
    with opened(engine_bundles[TENSORRT]) as engine:
        pictures = np.zeros((1, 3, *engine.model.spec.reference_layout.views[0].size), np.float32)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_stream.CudaStream, "synchronize", lambda self: None)
            features = engine.model.session.encode({"pixel_values": pictures})["image_features"]
            assert np.isnan(features).all()
            engine.model.session.encode({"pixel_values": pictures + 1})
        with pytest.raises(AssertionError, match="locked memory was changed"):
            engine.model.session.encode({"pixel_values": pictures})


@pytest.mark.parametrize("case", OWN_INPUTS, ids=lambda case: case.model_type)
def test_families_with_inputs_of_their_own_give_the_tokens_of_onnx_runtime(
    case: FamilyCase, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    bundle = add_engines(made.bundle(case), tmp_path, TENSORRT)
    replies = []
    for session in (TrtSession(bundle), OrtSession(bundle, threads=1)):
        with Engine(Model(bundle, session)) as engine:
            replies.append([ask(engine, mode) for mode in ("cached", "safecode-paper")])
            replies[-1].append(engine.generate(REQUEST, sampling=SHORT, mode="plain"))
    assert [reply.fallback_reason for reply in replies[0]] == [None] * 3
    assert [reply.token_ids for reply in replies[0]] == [reply.token_ids for reply in replies[1]]
