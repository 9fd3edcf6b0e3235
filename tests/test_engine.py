"""The engine on the null backend: contexts, dropped rows, ends of replies, the fail-safe."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safecode_trt.config import PAPER, RuntimeConfig, SafeCodeConfig, SamplingParams
from safecode_trt.errors import BackendError, BundleError, CapacityError, PromptError, SteeringError
from safecode_trt.manifest import BUNDLE_JSON, DECODER
from safecode_trt.policy import make_policy
from safecode_trt.runtime import Engine, Message, Reply
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds
from tests.null_bundle import CAPACITY, write_null_bundle

PICTURE = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8))
SHORT = SamplingParams(max_new_tokens=12)
REQUEST = "can i pour water on it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, config=RuntimeConfig(backend="null")) as opened:
        yield opened


def null(engine: Engine) -> NullSession:
    assert isinstance(engine.session, NullSession)
    return engine.session


def ask(engine: Engine, settings: SafeCodeConfig | None = None, sampling: SamplingParams = SHORT) -> Reply:
    defaults = engine.bundle.manifest.safecode
    policy = make_policy("plain" if settings is None else "safecode", defaults, settings=settings)
    return engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=sampling)


def test_a_decoder_with_inputs_that_the_family_does_not_feed(tmp_path: Path) -> None:
    path = write_null_bundle(tmp_path / "bundle") / BUNDLE_JSON
    manifest = json.loads(path.read_text())
    own = {"name": "own", "dtype": "float32", "shape": ["C", "T", 1]}
    manifest["graphs"][DECODER]["inputs"].insert(6, own)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not those of the family idefics3; export again"):
        Engine.open(path.parent, config=RuntimeConfig(backend="null"))


def test_the_noised_row_is_carried_for_the_steered_steps_only(engine: Engine) -> None:
    reply = ask(engine, PAPER)
    rows = [rows for rows, new in null(engine).calls if new == 1]
    assert rows == [2] * 4 + [1] * (len(reply.token_ids) - 5)
    assert len(reply.trace) == 5 and reply.verdict is not None


def test_the_prefix_of_the_judge_is_computed_once(engine: Engine) -> None:
    ask(engine, PAPER)
    shared, request, noised, judge = [new for _, new in null(engine).calls if new > 1]
    assert noised == shared + request
    assert judge < shared


def test_a_cached_reference_is_prefilled_once_per_engine(engine: Engine) -> None:
    settings = engine.bundle.manifest.safecode.settings
    calls = null(engine).calls
    first = ask(engine, settings)
    cold = sum(rows * new for rows, new in calls if new > 1)
    calls.clear()
    second = ask(engine, settings)
    warm = sum(rows * new for rows, new in calls if new > 1)
    assert first.token_ids == second.token_ids
    assert cold - warm >= engine.bundle.manifest.geometry.image_seq_len


def test_steering_switched_off_is_plain_to_the_byte(engine: Engine) -> None:
    off = replace(PAPER, alpha=0.0, shift=0.0)
    hot = replace(SHORT, temperature=0.8, seed=3)
    assert ask(engine, off).text == ask(engine).text
    assert ask(engine, off, hot).token_ids == ask(engine, None, hot).token_ids


def test_zero_weights_with_all_rows_carried_are_plain(engine: Engine) -> None:
    tiny = replace(PAPER, alpha=1e-30, shift=1e-30)
    assert ask(engine, tiny).token_ids == ask(engine).token_ids


def test_the_same_seed_gives_the_same_reply(engine: Engine) -> None:
    hot = SamplingParams(max_new_tokens=12, temperature=1.5, seed=5)
    assert ask(engine, PAPER, hot).token_ids == ask(engine, PAPER, hot).token_ids
    assert ask(engine, PAPER, hot).token_ids != ask(engine, PAPER, replace(hot, seed=6)).token_ids


def test_streams_may_interleave(engine: Engine) -> None:
    alone = ask(engine).text
    first, second = (engine.stream(REQUEST, image=PICTURE, sampling=SHORT) for _ in range(2))
    texts = ["", ""]
    for chunks in zip(first, second, strict=True):
        texts = [text + chunk.text for text, chunk in zip(texts, chunks, strict=True)]
    assert [text.strip() for text in texts] == [alone, alone]


def test_text_only_and_several_turns(engine: Engine) -> None:
    turns = [
        Message(role="user", text="hi"),
        Message(role="assistant", text="Hello."),
        Message(role="user", text="ok?"),
    ]
    policy = make_policy("safecode", engine.bundle.manifest.safecode)
    assert engine.generate(turns, policy=policy, sampling=SHORT).finish_reason in ("length", "stop")


def test_a_reply_ends_where_it_should(engine: Engine) -> None:
    assert ask(engine, None, SamplingParams(max_new_tokens=3)).finish_reason == "length"
    long = ask(engine, None, SamplingParams(max_new_tokens=10_000))
    assert long.finish_reason in ("capacity", "stop")
    assert long.prompt_tokens + len(long.token_ids) <= CAPACITY + 1
    cancelled = engine.generate(REQUEST, image=PICTURE, sampling=SHORT, cancel=lambda: True)
    assert cancelled.finish_reason == "cancelled" and len(cancelled.token_ids) == 1
    text = ask(engine).text
    stopped = ask(engine, None, replace(SHORT, stop=(text[4:7],)))
    assert stopped.finish_reason == "stop" and stopped.text == text[: text.find(text[4:7])].strip()


def test_what_does_not_fit_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(CapacityError, match="--context-length"):
        engine.generate("water " * CAPACITY, image=PICTURE)
    with pytest.raises(PromptError, match="empty"):
        engine.generate("  ", image=PICTURE)
    assert null(engine).calls == []


class Broken(NullSession):
    """A null session whose decoder misbehaves in one pass."""

    def __init__(self, inner: NullSession, fault: Exception | float, at: int) -> None:
        super().__init__(inner.geometry)
        self.fault, self.at = fault, at

    def decode(self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> np.ndarray:
        logits = super().decode(feeds, memory, first_row=first_row)
        if len(self.calls) == self.at:
            if isinstance(self.fault, Exception):
                raise self.fault
            logits[:] = self.fault
        return logits


@pytest.mark.parametrize("at", [2, 3, 4, 6])  # the real row, the noised, the judge; a steered step
@pytest.mark.parametrize("fault", [np.nan, np.inf, MemoryError("no memory"), BackendError("device lost")])
def test_what_cannot_be_trusted_is_refused(engine: Engine, fault: Exception | float, at: int) -> None:
    engine.session = Broken(null(engine), fault, at)
    reply = ask(engine, PAPER)
    assert reply.finish_reason == "fallback" and reply.fallback_reason
    assert reply.text == "Sorry, I cannot help with that."


class Spoiling(NullSession):
    """A null session in whose first reply every pass leaves NaN in the cache."""

    sound = False

    def decode(self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> np.ndarray:
        logits = super().decode(feeds, memory, first_row=first_row)
        if not self.sound:
            assert isinstance(memory, HostCache)
            memory.data[:] = np.nan
        return logits


def test_a_failed_reply_spoils_no_later_one(engine: Engine) -> None:
    settings = engine.bundle.manifest.safecode.settings  # with a prefix that is kept
    sound, session = null(engine), Spoiling(null(engine).geometry)
    engine.session = session
    assert ask(engine, settings).finish_reason == "fallback"
    session.sound = True
    later = ask(engine, settings)
    with Engine(engine.bundle, sound) as fresh:
        assert later.token_ids == ask(fresh, settings).token_ids


def test_the_other_fallbacks(engine: Engine) -> None:
    plain = ask(engine)
    engine.session = Broken(null(engine), np.nan, 2)
    assert ask(engine, replace(PAPER, fallback="plain")).text == plain.text
    engine.session = Broken(null(engine), np.nan, 2)
    with pytest.raises(SteeringError):
        ask(engine, replace(PAPER, fallback="error"))


def test_no_time_for_the_steered_steps_is_a_refusal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = replace(SHORT, time_limit=0.0)
    assert ask(engine, PAPER, sampling).finish_reason == "fallback"
    assert ask(engine, None, sampling).finish_reason in ("time_limit", "fallback")
    encode = null(engine).encode

    def slow(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        time.sleep(0.02)
        return encode(inputs)

    monkeypatch.setattr(engine.session, "encode", slow)
    late = ask(engine, PAPER, replace(SHORT, time_limit=0.01))
    assert late.finish_reason == "fallback" and "time limit" in (late.fallback_reason or "")


@pytest.mark.parametrize(("steps", "reason"), [(None, "time_limit"), (10, "fallback")])
def test_a_reply_may_end_in_a_steering_of_all_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, steps: int | None, reason: str
) -> None:
    decode, started = engine.session.decode, time.perf_counter()

    def slow(feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> np.ndarray:
        if feeds.inputs_embeds.shape[1] == 1 and len(null(engine).calls) > 5:
            time.sleep(max(0.0, started + 0.6 - time.perf_counter()))
        return decode(feeds, memory, first_row=first_row)

    monkeypatch.setattr(engine.session, "decode", slow)
    settings = replace(PAPER, shift=0.0, contrast_steps=steps)
    reply = ask(engine, settings, replace(SHORT, time_limit=0.5, max_new_tokens=12))
    assert reply.finish_reason == reason
    assert bool(reply.token_ids) == (reason == "time_limit")


def test_missing_verdict_tokens_are_never_safe(engine: Engine) -> None:
    class NoVerdict(NullSession):
        def decode(self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> np.ndarray:
            logits = super().decode(feeds, memory, first_row=first_row)
            logits[:, [20, 21]] = -np.inf
            return logits

    engine.session = NoVerdict(null(engine).geometry)
    assert ask(engine, PAPER).finish_reason == "fallback"


def test_begin_gets_one_row_per_context(engine: Engine) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    class Spy:
        def __init__(self) -> None:
            inner = make_policy("safecode-paper", engine.bundle.manifest.safecode)
            self.plan, self.fallback, self._inner = inner.plan, inner.fallback, inner

        def begin(self, logits: Mapping[str, np.ndarray]) -> object:
            seen.update({name: row.shape for name, row in logits.items()})
            return self._inner.begin(logits)

    engine.generate(REQUEST, image=PICTURE, policy=Spy(), sampling=SHORT)  # type: ignore[arg-type]
    assert set(seen) == {"real", "noised", "judge"} and len(set(seen.values())) == 1
