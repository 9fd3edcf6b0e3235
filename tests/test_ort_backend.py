"""The ONNX Runtime backend on a tiny exported bundle: rows, forks, dropped rows, a cache that is not copied."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safecode_trt.bundle import Bundle
from safecode_trt.config import PAPER, RuntimeConfig, SafeCodeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Combined, Context, Fallback, Plan, Verdict
from safecode_trt.runtime.backends import host_cache
from safecode_trt.runtime.backends.ort import OrtSession
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.prefill import plan_prefill, run_prefill
from safecode_trt.runtime.rows import RowPrompt
from safecode_trt.runtime.session import DecoderFeeds, DecoderOutputs

PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
REQUEST = "can i touch it?"
SHORT = SamplingParams(max_new_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_bundle: Bundle) -> Iterator[Engine]:
    with Engine.open(tiny_bundle.path, config=RuntimeConfig(threads=1)) as opened:
        yield opened


def prompts(engine: Engine, lengths: tuple[int, ...], *, shared: int = 0, seed: int = 0) -> list[RowPrompt]:
    """Random token rows whose first `shared` tokens are the same."""
    draw = np.random.Generator(np.random.PCG64(seed))
    vocab = engine.bundle.manifest.geometry.vocab_size
    head = draw.integers(0, vocab, shared)
    rows = [np.concatenate([head, draw.integers(0, vocab, n - shared)]) for n in lengths]
    return [engine.model.builder.text_row(row) for row in rows]


def prefill(
    engine: Engine, rows: list[RowPrompt], *, min_shared: int = 1 << 30
) -> tuple[np.ndarray, KVCache]:
    cache = KVCache(engine.model.session.allocate(len(rows)), rows=len(rows))
    plan = plan_prefill([row.keys for row in rows], [0] * len(rows), min_shared=min_shared)
    logits = run_prefill(plan, rows, engine.model.session, cache, engine.model.builder)
    return logits.copy(), cache


def test_rows_of_one_batch_equal_single_runs(engine: Engine) -> None:
    rows = prompts(engine, (9, 23, 14))
    together, cache = prefill(engine, rows)
    for row, logits in zip(rows, together, strict=True):
        alone, _ = prefill(engine, [row])
        np.testing.assert_allclose(logits, alone[0], atol=1e-5)
    step = engine.model.session.decode(engine.model.builder.step(5, cache), cache.memory).logits[:, 0].copy()
    for row, logits in zip(rows, step, strict=True):
        _, single = prefill(engine, [row])
        expected = engine.model.session.decode(engine.model.builder.step(5, single), single.memory).logits[
            :, 0
        ]
        np.testing.assert_allclose(logits, expected[0], atol=1e-5)


def test_a_forked_prefix_equals_a_full_prefill(engine: Engine) -> None:
    rows = prompts(engine, (30, 26, 27), shared=20)
    full, full_cache = prefill(engine, rows)
    forked, forked_cache = prefill(engine, rows, min_shared=8)
    np.testing.assert_allclose(forked, full, atol=1e-4)
    for row, length in enumerate((30, 26, 27)):
        np.testing.assert_allclose(
            forked_cache.save(row, length).data, full_cache.save(row, length).data, atol=1e-4
        )


def test_a_saved_prefix_is_loaded_whole(engine: Engine) -> None:
    rows = prompts(engine, (80, 85), shared=70)
    expected, cache = prefill(engine, [rows[1]])
    prefix = cache.save(0, 70)
    fresh = KVCache(engine.model.session.allocate(1), rows=1)
    assert fresh.memory.capacity < 70
    fresh.load(0, prefix)
    plan = plan_prefill([rows[1].keys], [70])
    logits = run_prefill(plan, [rows[1]], engine.model.session, fresh, engine.model.builder)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


class Carrying:
    """SafeCoDe that never drops the reference row: behind its own steps it passes the real row on."""

    def __init__(self, engine: Engine, settings: SafeCodeConfig) -> None:
        self._inner = make_policy("safecode", engine.bundle.manifest.safecode, settings=settings)
        self.plan: Plan = self._inner.plan
        self.fallback: Fallback = self._inner.fallback

    steps: int | None = None
    changes = 0
    answer: str | None = None

    def without_pictures(self) -> Carrying:
        return self

    def informed(self, verdict: Verdict) -> Carrying:
        return self

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        return asked

    def begin(self, logits: Mapping[str, np.ndarray]) -> Carrying:
        self._steering = self._inner.begin(logits)
        self.verdict: Verdict | None = self._steering.verdict
        return self

    def fused(self, step: int, sampling: SamplingParams) -> None:
        return None

    def combine(self, step: int, logits: np.ndarray) -> Combined:
        return (
            self._steering.combine(step, logits)
            if step < (self._steering.steps or 0)
            else Combined(logits=logits[0])
        )


@pytest.mark.parametrize("reference", ["noised", "cached"])
def test_dropping_rows_changes_no_token(engine: Engine, reference: str) -> None:
    settings = replace(PAPER, sigma=1.0, reference=reference)  # type: ignore[arg-type]
    dropping = make_policy("safecode", engine.bundle.manifest.safecode, settings=settings)
    kept = engine.generate(REQUEST, image=PICTURE, policy=Carrying(engine, settings), sampling=SHORT)
    dropped = engine.generate(REQUEST, image=PICTURE, policy=dropping, sampling=SHORT)
    assert kept.token_ids == dropped.token_ids and len(kept.token_ids) == 16


def test_switched_off_it_is_plain_to_the_byte(engine: Engine) -> None:
    off = make_policy(
        "safecode", engine.bundle.manifest.safecode, settings=replace(PAPER, alpha=0.0, shift=0.0)
    )
    for sampling in (SHORT, replace(SHORT, temperature=1.0, seed=4)):
        plain = engine.generate(REQUEST, image=PICTURE, sampling=sampling, mode="plain")
        steered = engine.generate(REQUEST, image=PICTURE, policy=off, sampling=sampling)
        assert (steered.text, steered.token_ids) == (plain.text, plain.token_ids)


def test_the_pictures_go_through_the_encoder_in_one_call(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    encode = engine.model.session.encode

    def counting(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        shapes.append(len(inputs["pixel_values"]))
        return encode(inputs)

    monkeypatch.setattr(engine.model.session, "encode", counting)
    policy = make_policy("safecode-paper", engine.bundle.manifest.safecode)
    engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
    assert len(shapes) == 1 and shapes[0] % 2 == 0


def test_the_contexts_see_what_the_plan_says(engine: Engine) -> None:
    plan = Plan(contexts=(Context(name="real"), Context(name="same", lifetime="steered")))
    seen = []

    class Spy(Carrying):
        def __init__(self) -> None:
            self.plan, self.fallback = plan, Fallback(kind="error")

        def begin(self, logits: Mapping[str, np.ndarray]) -> Spy:
            seen.append(np.abs(logits["real"] - logits["same"]).max())
            self.steps, self.verdict = 3, None
            return self

        def combine(self, step: int, logits: np.ndarray) -> Combined:
            seen.append(np.abs(logits[0] - logits[1]).max())
            return Combined(logits=logits[0])

    engine.generate(REQUEST, image=PICTURE, policy=Spy(), sampling=SHORT)
    assert len(seen) == 4 and max(seen) < 1e-5


def lead(engine: Engine, rows: list[RowPrompt], reserved: int, tokens: int) -> tuple[np.ndarray, list[int]]:
    """Logits of a prefill and of so many steps, all rows, and the capacities that the memory went through."""
    memory = engine.model.session.allocate(len(rows))
    memory.reserve(reserved)
    cache = KVCache(memory, rows=len(rows))
    plan = plan_prefill([row.keys for row in rows], [0] * len(rows))
    logits = [run_prefill(plan, rows, engine.model.session, cache, engine.model.builder)]
    capacities = [memory.capacity]
    for token in range(5, 5 + tokens):
        cache.require(1)
        logits.append(
            engine.model.session.decode(engine.model.builder.step(token, cache), memory).logits[:, 0].copy()
        )
        cache.advance(np.ones(len(rows), np.int64))
        capacities.append(memory.capacity)
    return np.stack(logits), capacities


def test_a_cache_that_grows_changes_no_logits(engine: Engine) -> None:
    rows = prompts(engine, (40, 57))
    grown, capacities = lead(engine, rows, 1, 90)
    whole, fixed = lead(engine, rows, 256, 90)
    assert sorted(set(capacities)) == [64, 128, 192] and set(fixed) == {256}
    np.testing.assert_allclose(grown, whole, atol=1e-5)
    assert np.array_equal(grown.argmax(-1), whole.argmax(-1))


def test_a_reply_through_all_sizes_of_the_cache_changes_no_token(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingParams(max_new_tokens=1000, ignore_eos=True)
    policy = make_policy("safecode-paper", tiny_bundle.manifest.safecode)
    replies = []
    for _ in range(2):
        with Engine.open(tiny_bundle.path, config=RuntimeConfig(threads=1)) as opened:
            replies.append(opened.generate(REQUEST, image=PICTURE, policy=policy, sampling=sampling))
        monkeypatch.setattr(host_cache, "capacity_for", lambda positions, limit: limit)
    grown, whole = replies
    assert grown.finish_reason == whole.finish_reason == "capacity"
    assert grown.token_ids == whole.token_ids and len(set(grown.token_ids)) > 8


def test_a_short_reply_behind_a_long_one_starts_small_again(engine: Engine) -> None:
    first = engine.generate(REQUEST, image=PICTURE, sampling=SHORT, mode="plain")
    engine.generate(REQUEST, image=PICTURE, sampling=replace(SHORT, max_new_tokens=1000), mode="plain")
    seen = []
    decode = engine.model.session.decode

    def watching(feeds: DecoderFeeds, *arguments: Any, **options: Any) -> DecoderOutputs:
        seen.append(feeds.attention_bias.shape[-1])
        return decode(feeds, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.model.session, "decode", watching)
        again = engine.generate(REQUEST, image=PICTURE, sampling=SHORT, mode="plain")
    assert max(seen) < 256
    assert again.token_ids == first.token_ids


SCATTER = """
import sys
import numpy as np
import onnxruntime as ort

class Loud(ort.SessionOptions):
    def __setattr__(self, name, value):
        super().__setattr__(name, 2 if name == "log_severity_level" else value)

ort.SessionOptions = Loud
from safecode_trt.engine import Engine
from safecode_trt.runtime.backends.ort_binding import Binding
from safecode_trt.runtime.kv_cache import KVCache

if sys.argv[2] == "apart":
    bind_cache = Binding.bind_cache
    def apart(self, geometry, memory, first_row, rows):
        bind_cache(self, geometry, memory, first_row, rows)
        slabs = memory.data[:, first_row : first_row + rows]
        self.other = np.zeros_like(slabs)
        # A cache that has not grown yet stays as it is, so that only the steps behind it could be seen to copy.
        for slab, data in enumerate(self.other if slabs.shape[3] > small else []):
            name = f"present.{slab // 2}.{('key', 'value')[slab % 2]}"
            self.io.bind_output(name, "cpu", 0, data.dtype, data.shape, data.ctypes.data)
    Binding.bind_cache = apart
engine = Engine.open(sys.argv[1])
cache = KVCache(engine.model.session.allocate(2), rows=2)
small = cache.memory.capacity
for rows in (2, 2, 1, 1, 1):
    cache.keep(rows)
    cache.require(1 if rows == 2 else small)
    engine.model.session.decode(engine.model.builder.step(3, cache), cache.memory)
    cache.advance(np.ones(rows, np.int64))
assert cache.memory.capacity > small
"""


@pytest.mark.parametrize(("binding", "copied"), [("together", False), ("apart", True)])
def test_the_cache_is_updated_in_place(tiny_bundle: Bundle, binding: str, copied: bool) -> None:
    """ONNX Runtime warns of every copy of a cache; past and present bound apart, once it has grown, show that."""
    script = [sys.executable, "-c", SCATTER, str(tiny_bundle.path), binding]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True)
    assert ("copying past_cache" in done.stderr) == copied


def test_fewer_rows_run_on_the_same_memory(engine: Engine) -> None:
    rows = prompts(engine, (9, 9))
    _, cache = prefill(engine, rows)
    data = cache.memory.data  # type: ignore[attr-defined]
    before, address = data[:, 1].copy(), data.ctypes.data
    cache.keep(1)
    engine.model.session.decode(engine.model.builder.step(3, cache), cache.memory)
    assert np.array_equal(data[:, 1], before)
    assert cache.memory.data.ctypes.data == address  # type: ignore[attr-defined]
    assert np.abs(data[:, 0, :, 9]).min() > 0


def test_a_graph_of_another_shape_is_refused(tiny_bundle: Bundle) -> None:
    bundle = tiny_bundle
    graph = bundle.manifest.graphs[DECODER]
    renamed = replace(graph, inputs=(replace(graph.inputs[0], name="input_ids"), *graph.inputs[1:]))
    manifest = replace(bundle.manifest, graphs={**bundle.manifest.graphs, DECODER: renamed})
    with pytest.raises(BackendError, match=r"onnx/decoder\.onnx: input .*input_ids"):
        OrtSession(replace(bundle, manifest=manifest))
