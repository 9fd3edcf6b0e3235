"""The fail-safe on the null backend: what cannot be trusted ends in the policy's fallback, and spoils nothing later."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.config import PAPER, RuntimeConfig
from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError, SteeringError
from safecode_trt.policy import make_policy
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.model import Model
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, DecoderOutputs
from tests.judge_cases import made as made_judge
from tests.null_bundle import write_null_bundle
from tests.null_engine import PICTURE, REQUEST, SHORT, Broken, Spoiling, ask, null


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, config=RuntimeConfig(backend="null")) as opened:
        yield opened


@pytest.mark.parametrize("at", [2, 3, 4, 6])  # the real row, the noised, the judge; a steered step
@pytest.mark.parametrize("fault", [np.nan, np.inf, MemoryError("no memory"), BackendError("device lost")])
def test_what_cannot_be_trusted_is_refused(engine: Engine, fault: Exception | float, at: int) -> None:
    engine.model.session = Broken(null(engine), fault, at)
    reply = ask(engine, PAPER)
    assert reply.finish_reason == "fallback" and reply.fallback_reason
    assert reply.text == "Sorry, I cannot help with that."


def test_a_failed_reply_spoils_no_later_one(engine: Engine) -> None:
    settings = engine.bundle.manifest.safecode.settings  # with a prefix that is kept
    sound, session = null(engine), Spoiling(null(engine).geometry)
    engine.model.session = session
    assert ask(engine, settings).finish_reason == "fallback"
    session.sound = True
    later = ask(engine, settings)
    with Engine(Model(engine.bundle, sound)) as fresh:
        assert later.token_ids == ask(fresh, settings).token_ids


def test_the_other_fallbacks(engine: Engine) -> None:
    plain = ask(engine)
    engine.model.session = Broken(null(engine), np.nan, 2)
    assert ask(engine, replace(PAPER, fallback="plain")).text == plain.text
    engine.model.session = Broken(null(engine), np.nan, 2)
    with pytest.raises(SteeringError):
        ask(engine, replace(PAPER, fallback="error"))


def test_no_time_for_the_steered_steps_is_a_refusal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = replace(SHORT, deadline_s=0.0)
    assert ask(engine, PAPER, sampling).finish_reason == "fallback"
    plain = ask(engine, None, sampling)  # where nothing is steered there is nothing to distrust
    assert (plain.finish_reason, plain.fallback_reason) == ("deadline", None)
    encode = null(engine).encode

    def slow(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        time.sleep(0.02)
        return encode(inputs)

    monkeypatch.setattr(engine.model.session, "encode", slow)
    late = ask(engine, PAPER, replace(SHORT, deadline_s=0.01))
    assert late.finish_reason == "fallback" and "deadline" in (late.fallback_reason or "")


@pytest.mark.parametrize(("steps", "reason"), [(None, "deadline"), (10, "fallback")])
def test_a_reply_may_end_in_a_steering_of_all_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, steps: int | None, reason: str
) -> None:
    decode, started = engine.model.session.decode, time.perf_counter()

    def slow(feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> DecoderOutputs:
        if feeds.inputs_embeds.shape[1] == 1 and len(null(engine).calls) > 5:
            time.sleep(max(0.0, started + 0.6 - time.perf_counter()))
        return decode(feeds, memory, first_row=first_row)

    monkeypatch.setattr(engine.model.session, "decode", slow)
    settings = replace(PAPER, shift=0.0, contrast_steps=steps)
    reply = ask(engine, settings, replace(SHORT, deadline_s=0.5, max_new_tokens=12))
    assert reply.finish_reason == reason
    assert bool(reply.token_ids) == (reason == "deadline")


@pytest.mark.parametrize("kind", ["error", "plain"])
def test_no_time_under_the_other_fallbacks(engine: Engine, kind: Any) -> None:
    settings, sampling = replace(PAPER, fallback=kind), replace(SHORT, deadline_s=0.0)
    if kind == "error":
        with pytest.raises(SteeringError, match="deadline of 0 s passed"):
            ask(engine, settings, sampling)
        return
    reply = ask(engine, settings, sampling)  # and none for a plain answer
    assert reply.finish_reason == "deadline" and "deadline" in (reply.fallback_reason or "")


def test_a_plain_fallback_that_is_late_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.model.session = session = Broken(null(engine), np.nan, 2)
    decode = session.decode

    def slow(feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> DecoderOutputs:
        if len(session.calls) >= 4:  # what the rows share, and each of the three; then the plain prompt
            time.sleep(0.6)
        return decode(feeds, memory, first_row=first_row)

    monkeypatch.setattr(session, "decode", slow)
    reply = ask(engine, replace(PAPER, fallback="plain"), replace(SHORT, deadline_s=0.5))
    assert reply.finish_reason == "deadline" and "not finite" in (reply.fallback_reason or "")


@pytest.mark.parametrize("fault", [np.nan, MemoryError("no memory"), BackendError("device lost")])
def test_a_plain_fallback_that_fails_is_a_refusal(engine: Engine, fault: Exception | float) -> None:
    sound, session = null(engine), Broken(null(engine), fault, None)
    engine.model.session = session
    reply = ask(engine, replace(PAPER, fallback="plain"))
    assert reply.finish_reason == "fallback" and reply.text == "Sorry, I cannot help with that."
    assert "; and plain decoding: " in (reply.fallback_reason or "")
    assert reply.backend_failed == isinstance(fault, Exception)
    engine.model.session = sound
    assert not ask(engine).backend_failed


def test_what_a_plain_fallback_has_computed_spoils_no_later_reply(engine: Engine) -> None:
    expected, session = ask(engine), Spoiling(null(engine).geometry)
    engine.model.session = session
    engine.model.forget()
    assert ask(engine, replace(PAPER, fallback="plain")).finish_reason == "fallback"
    session.sound = True
    assert ask(engine).token_ids == expected.token_ids


@pytest.mark.parametrize("judges", [(), ("self", "self-caption")])
def test_the_failed_reply_is_gone_before_another_is_tried(engine: Engine, judges: tuple[str, ...]) -> None:
    """There may be no room for both caches."""
    engine.model.session = session = Broken(null(engine), np.nan, 6 if judges else 2)
    allocate, made, alive = session.allocate, list[weakref.ref[CacheMemory]](), list[int]()

    def watched(rows: int) -> CacheMemory:
        alive.append(sum(each() is not None for each in made))
        made.append(weakref.ref(memory := allocate(rows)))
        return memory

    session.allocate = watched  # type: ignore[method-assign]
    policy = make_policy(
        "safecode", engine.bundle.manifest.safecode, settings=replace(PAPER, fallback="plain")
    )
    judge = made_judge(*judges) if judges else None
    reply = engine.generate(REQUEST, image=PICTURE, policy=policy, judge=judge, sampling=SHORT)
    assert reply.finish_reason != "fallback" and reply.fallback_reason is not None
    assert alive[-1] == 0 and len(alive) == 2


def test_the_figures_are_those_of_the_answer(engine: Engine) -> None:
    plain = ask(engine)
    engine.model.session = Broken(null(engine), np.nan, 6)  # a steered step
    reply = ask(engine, replace(PAPER, fallback="plain"))
    assert reply.text == plain.text and reply.token_ids == plain.token_ids
    assert (reply.noise, reply.trace, reply.prompt_tokens) == (None, (), plain.prompt_tokens)
    assert reply.verdict is not None and reply.fallback_reason is not None
    times = reply.timings
    assert times.first_token_s + (len(reply.token_ids) - 1) * times.per_token_s <= times.total_s + 1e-9
    assert times.first_token_s > times.vision_s + times.prefill_s
    engine.model.session = Broken(null(engine), np.nan, 6)
    refused = ask(engine, PAPER)
    assert refused.verdict is not None and refused.token_ids == ()
    assert refused.timings.first_token_s == refused.timings.per_token_s == 0.0


def test_closing_a_stream_gives_its_memory_back(engine: Engine) -> None:
    session, made = null(engine), 0
    allocate = session.allocate

    def counted(rows: int) -> CacheMemory:
        nonlocal made
        made += 1
        return allocate(rows)

    session.allocate = counted  # type: ignore[method-assign]
    chunks = engine.stream("can i pour water on it?", sampling=SHORT, mode="plain")
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    engine.generate("can i pour water on it?", sampling=SHORT, mode="plain")
    assert made == 1


def test_missing_verdict_tokens_are_never_safe(engine: Engine) -> None:
    class NoVerdict(NullSession):
        def decode(self, *arguments: Any, **options: Any) -> DecoderOutputs:
            outputs = super().decode(*arguments, **options)
            outputs.logits[..., [20, 21]] = -np.inf
            return outputs

    engine.model.session = NoVerdict(null(engine).geometry)
    assert ask(engine, PAPER).finish_reason == "fallback"
