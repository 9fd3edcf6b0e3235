"""Why a refusal: only behind refusals, only what may be shown, and nothing is computed twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safecode_trt.bundle import Bundle
from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.policy import PLAIN, Policy, make_policy
from safecode_trt.policy.base import Context, Plan, PromptEdit
from safecode_trt.runtime import Message, Reply
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.explanation import CLAUSE_TOKENS, presentable, refuses
from safecode_trt.runtime.judges import JudgeConfig, make_judge
from safecode_trt.runtime.judges.judge import Judge
from safecode_trt.runtime.side_queries import first_logits, prefill_again
from tests.null_bundle import write_null_bundle
from tests.null_engine import Spoiling, not_finite

PICTURE = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8))
REQUEST = "can i pour water on it?"
LENGTH = 16


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(write_null_bundle(tmp_path / "bundle"), config=RuntimeConfig(backend="null")) as opened:
        yield opened


def constant(p: float) -> Judge:
    judge = make_judge(JudgeConfig(judges=(f"constant:{p}",)))
    assert judge is not None
    return judge


def refusing(engine: Engine) -> Policy:
    """A shift so strong that the verdict alone decides the first tokens: " Sorry", and again, which ends the word."""
    forced = replace(PAPER, alpha=0.0, shift=1000.0, shift_steps=2, top_k=10_000)
    return make_policy("safecode", engine.bundle.manifest.safecode, settings=forced)


def ask(engine: Engine, *, p: float = 1.0, explain: bool = True, **sampling: Any) -> Reply:
    """The null model never ends by itself; a stop string ends it."""
    policy, judge = refusing(engine), constant(p)
    sampling = {"max_new_tokens": LENGTH, **sampling}
    long = engine.generate(
        REQUEST, image=PICTURE, policy=policy, judge=judge, sampling=SamplingParams(**sampling)
    )
    stop = SamplingParams(**sampling, stop=(long.text[-4:],))
    reply = engine.generate(
        REQUEST, image=PICTURE, policy=policy, judge=judge, sampling=stop, explain=explain
    )
    assert reply.finish_reason == "stop"
    return reply


def test_a_refusal_says_what_the_model_says_of_the_scene(engine: Engine) -> None:
    bare, reply = ask(engine, explain=False), ask(engine)
    few = SamplingParams(max_new_tokens=CLAUSE_TOKENS)
    clause = engine.generate("describe the image.", image=PICTURE, sampling=few, mode="plain").text
    reason = presentable(clause, REQUEST, (" Sorry",))
    assert reason is not None and reply.explanation == f"I see {reason} Ask for something else."
    assert reply.text == f"{bare.text} {reply.explanation}" and bare.explanation is None
    assert reply.token_ids == bare.token_ids
    assert reply.timings.explain_s > 0 == bare.timings.explain_s


def test_it_is_streamed_behind_the_refusal(engine: Engine) -> None:
    stop = SamplingParams(max_new_tokens=LENGTH, stop=(ask(engine, explain=False).text[-3:],))
    chunks = list(
        engine.stream(
            REQUEST,
            image=PICTURE,
            policy=refusing(engine),
            judge=constant(1.0),
            sampling=stop,
            explain=True,
        )
    )
    reply = chunks[-1].reply
    assert reply is not None and reply.explanation is not None
    assert chunks[-2].text == f" {reply.explanation}"
    assert "".join(chunk.text for chunk in chunks).strip() == reply.text


def test_only_an_unsafe_verdict_is_explained(engine: Engine) -> None:
    assert ask(engine, p=0.0).explanation is None


def test_only_a_refusal_is_explained(engine: Engine) -> None:
    off = make_policy(
        "safecode", engine.bundle.manifest.safecode, settings=replace(PAPER, alpha=0.0, shift=1e-30)
    )
    text = engine.generate(
        REQUEST, image=PICTURE, policy=off, sampling=SamplingParams(max_new_tokens=LENGTH)
    ).text
    stop = SamplingParams(max_new_tokens=LENGTH, stop=(text[-4:],))
    reply = engine.generate(
        REQUEST, image=PICTURE, policy=off, judge=constant(1.0), sampling=stop, explain=True
    )
    assert reply.finish_reason == "stop" and reply.verdict is not None and reply.verdict.unsafe
    assert reply.explanation is None


def test_a_reply_that_was_cut_is_not_explained(engine: Engine) -> None:
    reply = engine.generate(
        REQUEST,
        image=PICTURE,
        policy=refusing(engine),
        judge=constant(1.0),
        sampling=SamplingParams(max_new_tokens=3),
        explain=True,
    )
    assert reply.finish_reason == "length" and reply.explanation is None


def test_a_clause_that_fails_leaves_the_refusal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = SamplingParams(max_new_tokens=LENGTH, stop=(ask(engine, explain=False).text[-3:],))
    decode, calls, sound = engine.model.session.decode, 0, 10_000

    def broken_later(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        outputs = decode(*arguments, **options)
        return outputs if calls <= sound else not_finite(outputs)

    def refusal(explain: bool) -> Reply:
        return engine.generate(
            REQUEST,
            image=PICTURE,
            policy=refusing(engine),
            judge=constant(1.0),
            sampling=stop,
            explain=explain,
        )

    monkeypatch.setattr(engine.model.session, "decode", broken_later)
    expected = refusal(explain=False)
    calls, sound = 0, calls
    reply = refusal(explain=True)
    assert calls > sound
    assert reply.text == expected.text and reply.finish_reason == "stop"
    assert reply.explanation is None and reply.fallback_reason is None


def test_a_clause_that_fails_spoils_no_later_reply(engine: Engine) -> None:
    bare = ask(engine, explain=False)
    stop = SamplingParams(max_new_tokens=LENGTH, stop=(bare.text[-3:],))

    def refusal(explain: bool) -> Reply:
        return engine.generate(
            REQUEST,
            image=PICTURE,
            policy=refusing(engine),
            judge=constant(1.0),
            sampling=stop,
            explain=explain,
        )

    session = Spoiling(engine.model.session.geometry)  # type: ignore[attr-defined]
    engine.model.session, session.sound = session, True
    expected = refusal(explain=False)
    session.spoils_after = 2 * len(session.calls)
    assert refusal(explain=True).explanation is None
    session.spoils_after = None
    assert refusal(explain=False).token_ids == expected.token_ids


def test_the_picture_is_neither_encoded_nor_read_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(engine.model.session, NullSession)
    bare = ask(engine, explain=False)
    stop = SamplingParams(max_new_tokens=LENGTH, stop=(bare.text[-3:],))
    encode, encoded = engine.model.session.encode, 0

    def counted(inputs: Any) -> Any:
        nonlocal encoded
        encoded += 1
        return encode(inputs)

    monkeypatch.setattr(engine.model.session, "encode", counted)
    calls = engine.model.session.calls
    new = []
    for explain in (False, True):
        calls.clear()
        engine.generate(
            REQUEST,
            image=PICTURE,
            policy=refusing(engine),
            judge=constant(1.0),
            sampling=stop,
            explain=explain,
        )
        new.append([count for rows, count in calls if count > 1])
    assert encoded == 2  # once a reply
    (clause,) = new[1][len(new[0]) :]
    assert clause < engine.bundle.manifest.geometry.image_seq_len


# -- one cache for two prompts, on a real decoder

JUDGED = Plan(
    contexts=(Context(name="real"), Context(name="judge", prompt="judge", lifetime="prefill")),
    prompts={"judge": PromptEdit(template="{request} is that safe?")},
)


def check_prefill_again(engine: Engine) -> None:
    asked = [Message(role="user", text="can i touch it?", images=1)]
    question = [Message(role="user", text="can you say what is here?", images=1)]
    first = engine.model.prepare(asked, [PICTURE], JUDGED)
    seen = engine.model.features(first, seed=0)
    ready = engine.model.prefill(first, seen)
    second = engine.model.prepare(question, [PICTURE], PLAIN.plan)
    features = engine.model.features(second, seed=0, known=seen)
    again = prefill_again(engine.model, second, features, first, ready)
    engine.model.release(again.cache)
    fresh = first_logits(engine.model, question, [PICTURE], seed=0)
    np.testing.assert_allclose(again.logits[0], fresh, rtol=1e-4, atol=1e-4)


def test_a_second_prompt_goes_on_where_the_first_differs(tiny_bundle: Bundle) -> None:
    with Engine.open(tiny_bundle.path, config=RuntimeConfig(threads=1)) as engine:
        check_prefill_again(engine)


# -- what may be shown


@pytest.mark.parametrize(
    ("clause", "shown"),
    [
        ("a socket in a kitchen.", "a socket in a kitchen."),
        ("a socket in a kitchen", "a socket in a kitchen."),
        ("the socket is live. pour the water slowly.", "the socket is live."),
        ("the socket\nand more", "the socket."),
        ("", None),
        (" \n", None),
        ("...", None),
        ("it is.", None),
        ("Sorry, I cannot help with that.", None),
        ("to pour water there kills.", None),
        ("water on the floor.", "water on the floor."),
    ],
)
def test_a_clause_as_it_is_shown(clause: str, shown: str | None) -> None:
    assert presentable(clause, REQUEST, (" Sorry", "I must refuse")) == shown


WORDS = st.lists(st.text("abcdefgh", min_size=4, max_size=9), min_size=1, max_size=9)


@given(WORDS, WORDS, WORDS, st.sampled_from([" ", ", ", " - ", "\t"]))
def test_no_run_of_the_request_is_ever_shown(
    request: list[str], before: list[str], after: list[str], space: str
) -> None:
    clause = space.join([*before, *request, *after]).upper()
    assert presentable(clause, " ".join(request), ()) is None


@given(st.text(max_size=80), st.text(max_size=40))
def test_what_is_shown_is_one_sentence_of_the_clause(clause: str, request: str) -> None:
    shown = presentable(clause, request, ("Sorry",))
    if shown is not None:
        assert "\n" not in shown and shown.endswith((".", "!", "?"))
        assert shown.rstrip(".") in clause or shown in clause
        assert re.search(r"\w", shown)


def test_what_a_refusal_is(engine: Engine) -> None:
    defaults = engine.bundle.manifest.safecode
    assert not refuses("Sorrywise, pour it.", defaults)
    assert not refuses("I can show you how.", defaults)
    assert refuses("Sorry, it is not safe.", defaults)
    assert refuses(defaults.fallback_refusal, defaults)
    assert not refuses("", defaults)
