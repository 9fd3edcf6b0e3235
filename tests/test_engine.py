"""The engine on the null backend: contexts, dropped rows, ends of replies, the fail-safe."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import BundleError, CapacityError, CheckpointError, PromptError
from safecode_trt.manifest import BUNDLE_JSON, DECODER
from safecode_trt.policy import Policy, make_policy
from safecode_trt.runtime import Message
from safecode_trt.runtime import model as model_module
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.judges import JudgeConfig, make_judge
from tests.null_bundle import CAPACITY, write_null_bundle
from tests.null_engine import PICTURE, REQUEST, SHORT, ask, null


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, config=RuntimeConfig(backend="null")) as opened:
        yield opened


def test_a_decoder_with_inputs_that_the_family_does_not_feed(tmp_path: Path) -> None:
    path = write_null_bundle(tmp_path / "bundle") / BUNDLE_JSON
    manifest = json.loads(path.read_text())
    own = {"name": "own", "dtype": "float32", "shape": ["C", "T", 1]}
    manifest["graphs"][DECODER]["inputs"].insert(6, own)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not those of the family idefics3"):
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
    """Two that differ in words, picture, rows and length, and of which the first is far ahead of the second."""
    defaults = engine.bundle.manifest.safecode
    asked: list[dict[str, Any]] = [
        {"prompt": REQUEST, "image": PICTURE, "sampling": SHORT, "policy": make_policy("safecode", defaults)},
        {"prompt": "hello there", "sampling": replace(SHORT, max_new_tokens=20, temperature=1.0, seed=4)},
        {"prompt": "what is it?", "image": PICTURE.rotate(90), "policy": make_policy("vcd", defaults)},
    ]
    alone = [engine.generate(**each).token_ids for each in asked]
    assert len(set(alone)) == 3
    streams, found = [engine.stream(**each) for each in asked], dict[int, tuple[int, ...]]()
    for turn in itertools.cycle([0, 0, 0, 1, 2, 0, 1, 1, 2]):
        if len(found) == len(streams):
            break
        if turn not in found and (reply := next(streams[turn]).reply) is not None:
            found[turn] = reply.token_ids
    assert [found[turn] for turn in range(3)] == alone


def test_text_only_and_several_turns(engine: Engine) -> None:
    turns = [
        Message(role="user", text="hi"),
        Message(role="assistant", text="Hello."),
        Message(role="user", text="ok?"),
    ]
    policy = make_policy("safecode", engine.bundle.manifest.safecode)
    assert engine.generate(turns, policy=policy, sampling=SHORT).finish_reason in ("length", "stop")


def test_a_frame_of_a_camera_is_a_picture(engine: Engine) -> None:
    policy = make_policy("safecode", engine.bundle.manifest.safecode)
    frame = engine.generate(REQUEST, image=np.asarray(PICTURE), policy=policy, sampling=SHORT)
    assert frame.token_ids == ask(engine, engine.bundle.manifest.safecode.settings).token_ids


def test_a_reply_ends_where_it_should(engine: Engine) -> None:
    assert ask(engine, None, SamplingParams(max_new_tokens=3)).finish_reason == "length"
    long = ask(engine, None, SamplingParams(max_new_tokens=10_000))
    assert long.finish_reason in ("capacity", "stop")
    assert long.prompt_tokens + len(long.token_ids) <= CAPACITY + 1
    cancelled = engine.generate(REQUEST, image=PICTURE, sampling=SHORT, cancel=lambda: True, mode="plain")
    assert cancelled.finish_reason == "cancelled" and not cancelled.token_ids
    text = ask(engine).text
    stopped = ask(engine, None, replace(SHORT, stop=(text[4:7],)))
    assert stopped.finish_reason == "stop" and stopped.text == text[: text.find(text[4:7])].strip()


def test_what_does_not_fit_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(CapacityError, match="--context-length"):
        engine.generate("water " * CAPACITY, image=PICTURE, mode="plain")
    with pytest.raises(PromptError, match="empty"):
        engine.generate("  ", image=PICTURE, mode="plain")
    assert null(engine).calls == []


def test_the_prefixes_used_last_are_kept(engine: Engine) -> None:
    policy = make_policy("safecode", engine.bundle.manifest.safecode)

    def cost(system: str) -> int:
        null(engine).calls.clear()
        turns = [Message(role="system", text=system), Message(role="user", text=REQUEST, images=1)]
        engine.generate(turns, image=PICTURE, policy=policy, sampling=SHORT)
        return sum(rows * new for rows, new in null(engine).calls if new > 1)

    cold = [cost(name) for name in "abcd"]
    assert cost("a") < cold[0]  # used again, so it is b's turn to go
    cost("e")
    assert cost("a") < cold[0]
    assert cost("b") == cold[1]


def test_a_judge_from_elsewhere_needs_no_room_for_the_models_own(engine: Engine) -> None:
    policy = make_policy("safecode-paper", engine.bundle.manifest.safecode)
    long = next(
        words for count in range(CAPACITY) if _refused(engine, words := "water " * count + "?", policy)
    )
    judge = make_judge(JudgeConfig(judges=("constant:0.5",)))
    reply = engine.generate(long, image=PICTURE, policy=policy, judge=judge, sampling=SHORT)
    assert reply.fallback_reason is None and reply.token_ids


def _refused(engine: Engine, words: str, policy: Policy) -> bool:
    try:
        engine.stream(words, image=PICTURE, policy=policy)
    except CapacityError:
        return True
    return False


def test_what_cannot_become_an_engine_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []
    monkeypatch.setattr(NullSession, "close", lambda session: closed.append(session))

    def unknown(*arguments: object, **options: object) -> None:
        raise CheckpointError("config.json: model_type 'later' is not supported")

    monkeypatch.setattr(model_module, "load_spec", unknown)
    with pytest.raises(BundleError, match=r"made by another version: config\.json: model_type 'later'"):
        Engine.open(folder, config=RuntimeConfig(backend="null"))
    assert len(closed) == 1


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
