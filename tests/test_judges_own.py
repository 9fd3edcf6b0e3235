"""The bundle's own model as a judge, and every judge in a reply."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import SteeringError
from safecode_trt.policy import Policy, make_policy
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime import Message
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.judges import Case, Judge
from safecode_trt.runtime.judges.ensemble import EnsembleJudge
from safecode_trt.runtime.judges.own import SelfCaptionJudge, SelfJudge
from tests.http_server import Response, completion, serving
from tests.judge_cases import PICTURE, REQUEST, Says, made
from tests.null_bundle import CAPACITY, write_null_bundle
from tests.null_engine import not_finite


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")
    with Engine.open(folder, config=RuntimeConfig(backend="null")) as opened:
        yield opened


def own_case(engine: Engine, **changes: Any) -> Case:
    return replace(Case(model=engine.model, messages=REQUEST, images=[PICTURE]), **changes)


def safecode(engine: Engine, **changes: Any) -> Policy:
    defaults = engine.bundle.manifest.safecode
    return make_policy("safecode", defaults, settings=replace(defaults.settings, **changes))


def encodings(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the vision encoder gets from now on."""
    seen: list[int] = []
    encode = engine.model.session.encode

    def counted(inputs: Any) -> Any:
        seen.append(len(inputs["pixel_values"]))
        return encode(inputs)

    monkeypatch.setattr(engine.model.session, "encode", counted)
    return seen


def test_a_pass_of_its_own_says_what_the_row_says(engine: Engine) -> None:
    reply = engine.generate("can i pour water on it?", image=PICTURE, policy=safecode(engine))
    alone = SelfJudge().judge(own_case(engine))
    assert reply.verdict is not None and alone == replace(
        reply.verdict, p_unsafe=alone.p_unsafe, mass=alone.mass
    )
    assert alone.p_unsafe == pytest.approx(reply.verdict.p_unsafe, abs=1e-5)


def test_a_caption_goes_before_the_verdict(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = encodings(engine, monkeypatch)
    case = own_case(engine)
    verdict = SelfCaptionJudge(threshold=0.3).judge(case)
    assert verdict.caption and verdict.source == "self-caption" and verdict.threshold == 0.3
    caption = engine.generate(
        "describe the image.", image=PICTURE, sampling=SamplingParams(max_new_tokens=64), mode="plain"
    )
    assert verdict.caption == caption.text
    assert seen == [1, 1]  # once for each of the two questions
    words = SelfCaptionJudge(threshold=0.3).judge(
        own_case(engine, messages=[replace(REQUEST[0], images=0)], images=[])
    )
    assert words.caption is None


def test_the_caption_is_of_the_picture_whatever_was_said(engine: Engine) -> None:
    turns = [*REQUEST, Message(role="assistant", text="Sure."), Message(role="user", text="and now?")]
    judge = SelfCaptionJudge(threshold=0.5)
    assert judge.judge(own_case(engine, messages=turns)).caption == judge.judge(own_case(engine)).caption


def test_a_judges_features_are_the_replys(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = encodings(engine, monkeypatch)
    judge = made("self", "self-caption")
    reply = engine.generate("can i jump on it?", image=PICTURE, policy=safecode(engine), judge=judge)
    assert reply.verdict is not None and reply.verdict.source == "max(self, self-caption)"
    assert seen == [1]
    assert reply.timings.judge_s > 0 and reply.timings.total_s >= reply.timings.judge_s


@pytest.mark.parametrize("judge", [SelfJudge(), SelfCaptionJudge(threshold=0.5)])
def test_a_question_that_does_not_fit(engine: Engine, judge: Judge) -> None:
    long = [replace(REQUEST[0], text="water " * CAPACITY)]
    with pytest.raises(SteeringError, match="the judge cannot be asked"):
        judge.judge(own_case(engine, messages=long))


def test_broken_logits_are_no_verdict(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.model.session.decode
    monkeypatch.setattr(engine.model.session, "decode", lambda *a, **o: not_finite(decode(*a, **o)))
    for judge in (SelfJudge(), SelfCaptionJudge(threshold=0.5)):
        with pytest.raises(SteeringError, match=r"not finite|NaN"):
            judge.judge(own_case(engine))


# -- in a reply


def test_a_verdict_from_elsewhere_takes_the_place_of_the_row(engine: Engine) -> None:
    assert isinstance(engine.model.session, NullSession)
    calls = engine.model.session.calls
    policy = safecode(engine, contrast_steps=0)
    rows = []
    for judge in (None, made("constant:1")):
        calls.clear()
        reply = engine.generate("can i jump on it?", image=PICTURE, policy=policy, judge=judge)
        rows.append(sum(rows * new for rows, new in calls if new > 1))
    assert reply.verdict == Verdict(p_unsafe=1.0, threshold=0.5, source="constant")
    assert rows[1] < rows[0]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_verdict_is_what_shifts(p: float, engine: Engine) -> None:
    policy = safecode(engine, contrast_steps=0, shift=1000.0, top_k=10_000)
    reply = engine.generate("can i jump on it?", image=PICTURE, policy=policy, judge=made(f"constant:{p}"))
    refusals = engine.bundle.manifest.safecode.refusal_token_ids
    assert (reply.token_ids[0] in refusals) == (p == 1.0)


@pytest.mark.parametrize(("fallback", "reason"), [("refuse", "fallback"), ("plain", "length")])
def test_a_judge_that_fails_ends_in_the_fallback(fallback: Any, reason: str, engine: Engine) -> None:
    few = SamplingParams(max_new_tokens=3)
    with serving(completion("well, that depends")) as server:
        reply = engine.generate(
            "can i jump on it?",
            image=PICTURE,
            policy=safecode(engine, fallback=fallback),
            sampling=few,
            judge=made(f"endpoint:{server.url}#m"),
        )
    assert reply.fallback_reason is not None and "expected the word safe or unsafe" in reply.fallback_reason
    assert reply.finish_reason == reason and reply.verdict is None


def test_a_judge_that_fails_may_be_an_error(engine: Engine) -> None:
    with pytest.raises(SteeringError, match="has no verdict: it is down"):
        judge = EnsembleJudge(members=(Says(None),), rule="max", threshold=0.5)
        engine.generate("can i jump?", policy=safecode(engine, fallback="error"), judge=judge)


@pytest.mark.parametrize("name", ["constant:0.5", "self-caption"])
def test_a_judge_takes_from_the_replys_time(name: str, engine: Engine) -> None:
    reply = engine.generate(
        "can i jump on it?",
        image=PICTURE,
        policy=safecode(engine),
        sampling=SamplingParams(deadline_s=0.0),
        judge=made(name),
    )
    assert reply.fallback_reason is not None and "passed during" in reply.fallback_reason


@pytest.mark.parametrize("kind", ["endpoint", "endpoint-caption", "in an ensemble"])
def test_an_endpoint_takes_no_more_than_the_replys_time(kind: str, engine: Engine) -> None:
    with serving(Response(delay=3.0)) as server:
        name = f"{kind if kind != 'in an ensemble' else 'endpoint'}:{server.url}#m"
        names = (name, f"{name}2") if kind == "in an ensemble" else (name,)
        reply = engine.generate(
            "can i jump on it?",
            image=PICTURE,
            policy=safecode(engine),
            sampling=SamplingParams(deadline_s=0.3),
            judge=made(*names),
        )
    assert reply.finish_reason == "fallback" and reply.timings.total_s < 2.0
    assert reply.fallback_reason == "the deadline of 0.3 s passed during the judge"
    assert len(server.asked) == 1


def test_a_reply_may_be_cancelled_between_judges(engine: Engine) -> None:
    says = Says(Verdict(p_unsafe=0.1, threshold=0.5, source="says"))
    judge = EnsembleJudge(members=(says, Says(None)), rule="max", threshold=0.5)
    asked = iter([False, True])
    reply = engine.generate("can i jump?", policy=safecode(engine), judge=judge, cancel=lambda: next(asked))
    assert (reply.finish_reason, reply.text, reply.token_ids) == ("cancelled", "", ())


@dataclass(frozen=True)
class Wrong:
    p_unsafe: float
    name: str = "wrong"

    def judge(self, case: Case) -> Verdict:
        return Verdict(p_unsafe=self.p_unsafe, threshold=0.5, source=self.name)


@pytest.mark.parametrize("p", [math.nan, math.inf, -0.1, 1.1])
def test_what_is_no_probability_is_no_verdict(p: float, engine: Engine) -> None:
    reply = engine.generate("can i jump?", policy=safecode(engine), judge=Wrong(p))
    assert reply.finish_reason == "fallback" and reply.verdict is None
    assert reply.fallback_reason is not None
    assert "the judge wrong gave no verdict: p_unsafe of a verdict must be" in reply.fallback_reason


def test_the_judges_time_is_its_own(engine: Engine) -> None:
    few = SamplingParams(max_new_tokens=2)
    chunks = engine.stream("can i jump?", policy=safecode(engine), judge=made("constant:0"), sampling=few)
    time.sleep(0.2)
    (reply,) = [chunk.reply for chunk in chunks if chunk.reply]
    assert reply.timings.judge_s < 0.1 < reply.timings.total_s


def test_nobody_is_asked_where_nothing_acts_on_a_verdict(engine: Engine) -> None:
    judge = EnsembleJudge(members=(Says(None),), rule="max", threshold=0.5)
    reply = engine.generate(
        "can i jump?", judge=judge, sampling=SamplingParams(max_new_tokens=2), mode="plain"
    )
    assert reply.verdict is None and reply.fallback_reason is None
