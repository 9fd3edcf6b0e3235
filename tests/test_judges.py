"""Judges: each says a verdict or raises SteeringError, and nothing in between."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.endpoint import Answer
from safecode_trt.errors import ConfigError, EndpointError, SteeringError
from safecode_trt.policy import Policy, make_policy
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime import Engine, Message
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.judges import Case, Judge, JudgeConfig, Keyed, case_key, make_judge
from safecode_trt.runtime.judges.ensemble import EnsembleJudge, Rule
from safecode_trt.runtime.judges.own import SelfCaptionJudge, SelfJudge
from safecode_trt.runtime.judges.remote import read_word
from tests.http_server import Response, completion, serving
from tests.null_bundle import CAPACITY, write_null_bundle

PICTURE = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8))
REQUEST = [Message(role="user", text="can i pour water on it?", images=1)]
NO_ENGINE = cast(Engine, None)
CASE = Case(engine=NO_ENGINE, messages=REQUEST, images=[PICTURE])


def made(*judges: str, **settings: Any) -> Judge:
    judge = make_judge(JudgeConfig(judges=judges, backoff=0.005, **settings))
    assert judge is not None
    return judge


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")
    with Engine.open(folder, config=RuntimeConfig(backend="null")) as opened:
        yield opened


# -- by name


def test_the_model_alone_needs_no_judge() -> None:
    assert make_judge(JudgeConfig()) is None


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        (("gpt",), "there is no judge 'gpt'; expected self, self-caption, constant:P"),
        (("constant",), "there is no judge 'constant'"),
        (("constant:1.5",), "between 0 and 1, got '1.5'"),
        (("constant:nan",), "between 0 and 1"),
        (("endpoint:http://host/v1",), "URL#MODEL"),
        (("endpoint:ftp://host/v1#m",), "must be like https"),
        (("file:nowhere.jsonl",), "nowhere.jsonl cannot be read"),
        (("self", "self"), "each judge may be named once"),
        ((), "at least one judge"),
    ],
)
def test_what_names_no_judge(judges: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make_judge(JudgeConfig(judges=judges))


def test_the_threshold_of_the_model_itself_is_the_bundles() -> None:
    with pytest.raises(ConfigError, match="`calibrate` sets it"):
        JudgeConfig(threshold=0.3)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        JudgeConfig(judges=("constant:0.3",), threshold=2.0)


# -- constant and file


def test_a_constant() -> None:
    assert made("constant:0.4").judge(CASE) == Verdict(p_unsafe=0.4, threshold=0.5, source="constant")
    assert made("constant:0.4", threshold=0.4).judge(CASE).unsafe


def write_lines(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return f"file:{path}"


def test_verdicts_from_a_file_by_item_and_by_content(tmp_path: Path) -> None:
    content = case_key(REQUEST, [PICTURE])
    name = write_lines(
        tmp_path / "v.jsonl", {"key": "a/b", "p_unsafe": 0.9}, "", {"key": content, "p_unsafe": 0.2}
    )
    judge = made(name)
    assert judge.judge(CASE).p_unsafe == 0.2
    assert Keyed(judge, "a/b").judge(CASE).p_unsafe == 0.9
    other = replace(CASE, messages=[replace(REQUEST[0], text="something else")])
    with pytest.raises(SteeringError, match="has none for"):
        judge.judge(other)
    with pytest.raises(SteeringError, match="has none for c/d"):
        Keyed(judge, "c/d").judge(other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"key": "a", "p_unsafe": 0.1}, "line 2: the key 'a' is there already"),
        ({"key": "b", "p_unsafe": 1.1}, "line 2: p_unsafe must be between 0 and 1"),
        ({"key": " ", "p_unsafe": 0.1}, "line 2: key must not be empty"),
        ({"key": "b", "unsafe": True}, "line 2: unknown key 'unsafe'"),
        ({"key": "b"}, "line 2: missing key 'p_unsafe'"),
        ("nonsense", "line 2: not valid JSON"),
        ('{"key": "b", "p_unsafe": NaN}', "line 2: p_unsafe must be"),
    ],
)
def test_a_file_that_contradicts_itself(line: object, message: str, tmp_path: Path) -> None:
    name = write_lines(tmp_path / "v.jsonl", {"key": "a", "p_unsafe": 0.1}, line)
    with pytest.raises(ConfigError, match=message):
        made(name)


def test_a_key_is_of_all_that_is_said_and_seen() -> None:
    darker = PICTURE.point([0, *range(255)] * 3)
    asked = REQUEST[0]
    keys = {
        case_key(REQUEST, [PICTURE]),
        case_key(REQUEST, [darker]),
        case_key(REQUEST, []),
        case_key([replace(asked, text="x")], [PICTURE]),
        case_key([replace(asked, role="system"), asked], [PICTURE]),
        case_key(REQUEST, [PICTURE.resize((48, 192))]),
    }
    assert len(keys) == 6


# -- several


@dataclass(frozen=True)
class Says:
    verdict: Verdict | None
    name: str = "says"

    def judge(self, case: Case) -> Verdict:
        if self.verdict is None:
            raise SteeringError("it is down")
        return self.verdict


def ensemble(rule: Rule, *members: tuple[float, float] | None) -> Verdict:
    judges = [
        Says(None if pair is None else Verdict(p_unsafe=pair[0], threshold=pair[1], source="says"))
        for pair in members
    ]
    return EnsembleJudge(members=tuple(judges), rule=rule, threshold=0.5).judge(CASE)


def test_the_rules_of_an_ensemble() -> None:
    members = ((0.9, 0.95), (0.1, 0.5), (0.2, 0.1))
    assert ensemble("max", *members).p_unsafe == 0.9
    assert ensemble("mean", *members).p_unsafe == pytest.approx(0.4)
    assert ensemble("majority", *members).p_unsafe == pytest.approx(1 / 3)
    assert ensemble("majority", (0.9, 0.5), (0.1, 0.5)).unsafe  # half of them are enough


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.sampled_from(["max", "mean", "majority"]))
def test_an_ensemble_that_agrees_says_what_its_members_say(beliefs: list[float], rule: Rule) -> None:
    verdict = ensemble(rule, *((p, 0.5) for p in beliefs))
    assert 0 <= verdict.p_unsafe <= 1
    if all(p >= 0.5 for p in beliefs):
        assert verdict.unsafe
    if all(p < 0.5 for p in beliefs):
        assert not verdict.unsafe


@pytest.mark.parametrize("rule", ["max", "mean", "majority"])
def test_an_ensemble_does_without_no_member(rule: Rule) -> None:
    with pytest.raises(SteeringError, match="the judge says has no verdict: it is down"):
        ensemble(rule, (0.9, 0.5), None)


def test_an_ensemble_by_names() -> None:
    judge = made("constant:0.2", "constant:0.6", rule="mean", threshold=0.4)
    verdict = judge.judge(CASE)
    assert (verdict.p_unsafe, verdict.unsafe, judge.name) == (0.4, True, "mean(constant, constant)")


# -- an endpoint


def test_an_endpoint_sees_picture_and_request() -> None:
    with serving(completion("unsafe", {"unsafe": math.log(0.75), "safe": math.log(0.25)})) as server:
        verdict = made(f"endpoint:{server.url}#guard").judge(CASE)
    assert verdict.p_unsafe == pytest.approx(0.75) and verdict.source == "endpoint:guard"
    system, user = server.asked[0]["messages"]
    picture, words = user["content"]
    sent = Image.open(BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
    assert np.array_equal(np.asarray(sent), np.asarray(PICTURE))
    assert "can i pour water on it?" in words["text"] and system["role"] == "system"


def test_an_endpoint_with_a_caption_judges_from_words() -> None:
    with serving(completion("A socket\nin a kitchen."), completion("unsafe")) as server:
        verdict = made(f"endpoint-caption:{server.url}#guard").judge(CASE)
    assert (verdict.p_unsafe, verdict.caption) == (1.0, "A socket in a kitchen.")
    last = server.asked[1]["messages"][-1]["content"]
    assert isinstance(last, str) and "A socket in a kitchen." in last and "pour water" in last


def test_a_conversation_without_a_picture() -> None:
    turns = [
        Message(role="user", text="hi {scene}"),
        Message(role="assistant", text="Hello."),
        Message(role="user", text="can i jump?"),
    ]
    with serving(completion("safe")) as server:
        verdict = made(f"endpoint-caption:{server.url}#guard").judge(
            Case(engine=NO_ENGINE, messages=turns, images=[])
        )
    (asked,) = server.asked
    text = asked["messages"][-1]["content"]
    assert "user: hi {scene}\nassistant: Hello.\nuser: can i jump?" in text and "no picture" in text
    assert verdict.p_unsafe == 0.0 and verdict.caption is None


def test_a_large_picture_is_made_smaller() -> None:
    large = Image.new("RGB", (3000, 30))
    with serving(completion("safe")) as server:
        made(f"endpoint:{server.url}#m").judge(replace(CASE, images=[large]))
    url = server.asked[0]["messages"][-1]["content"][0]["image_url"]["url"]
    assert Image.open(BytesIO(base64.b64decode(url.split(",")[1]))).size == (1024, 10)


@pytest.mark.parametrize(
    ("text", "p"), [("safe", 0.0), (" Unsafe.\n", 1.0), ("**unsafe**", 1.0), ("'SAFE'", 0.0)]
)
def test_one_word_is_read(text: str, p: float) -> None:
    assert read_word(Answer(text=text)) == p


@pytest.mark.parametrize("text", ["", "maybe", "not safe", "safe or unsafe", "It is safe.", "unsafe safe"])
def test_anything_else_is_no_verdict(text: str) -> None:
    with pytest.raises(EndpointError, match="expected the word safe or unsafe"):
        read_word(Answer(text=text))


@pytest.mark.parametrize(
    ("first", "p"),
    [
        ({"un": math.log(0.6), " Safe": math.log(0.2), "safe": math.log(0.2)}, 0.6),
        ({"un": math.log(0.2), "the": math.log(0.8)}, 1.0),  # the two hold too little: the word counts
        ({"safe": math.log(0.9), "unsafe": math.log(0.1)}, 1.0),  # they contradict the word
        ({"": -0.1, "u": -0.1}, 1.0),
    ],
)
def test_log_probabilities_of_the_word(first: dict[str, float], p: float) -> None:
    assert read_word(Answer(text="unsafe", first_token=tuple(first.items()))) == pytest.approx(p)


@pytest.mark.parametrize(
    "response",
    [
        completion("I cannot judge that."),
        Response(status=503),
        Response(status=401),
        Response(body=b"<html>"),
        Response(body=b"\xff"),
        Response(delay=3),
    ],
    ids=["nonsense", "down", "no key", "no JSON", "no text", "slow"],
)
def test_an_endpoint_that_fails_is_no_verdict(response: Response) -> None:
    with serving(response) as server:
        judge = made(f"endpoint:{server.url}#m", timeout=0.3, retries=1)
        with pytest.raises(SteeringError, match="the judge gave no verdict"):
            judge.judge(CASE)


def test_an_endpoint_is_asked_once_for_the_same_question(tmp_path: Path) -> None:
    with serving(completion("unsafe")) as server:
        for _ in range(2):
            judge = made(f"endpoint:{server.url}#m", cache=str(tmp_path))
            assert judge.judge(CASE).p_unsafe == 1.0
    assert len(server.asked) == 1


# -- the bundle's own model


def own_case(engine: Engine, **changes: Any) -> Case:
    return replace(Case(engine=engine, messages=REQUEST, images=[PICTURE]), **changes)


def safecode(engine: Engine, **changes: Any) -> Policy:
    defaults = engine.bundle.manifest.safecode
    return make_policy("safecode", defaults, settings=replace(defaults.settings, **changes))


def encodings(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the vision encoder gets from now on."""
    seen: list[int] = []
    encode = engine.session.encode

    def counted(inputs: Any) -> Any:
        seen.append(len(inputs["pixel_values"]))
        return encode(inputs)

    monkeypatch.setattr(engine.session, "encode", counted)
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
        "describe the image.", image=PICTURE, sampling=SamplingParams(max_new_tokens=64)
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
    decode = engine.session.decode
    monkeypatch.setattr(engine.session, "decode", lambda *a, **o: decode(*a, **o) * np.float32(np.nan))
    for judge in (SelfJudge(), SelfCaptionJudge(threshold=0.5)):
        with pytest.raises(SteeringError, match=r"not finite|NaN"):
            judge.judge(own_case(engine))


# -- in a reply


def test_a_verdict_from_elsewhere_takes_the_place_of_the_row(engine: Engine) -> None:
    assert isinstance(engine.session, NullSession)
    calls = engine.session.calls
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
        sampling=SamplingParams(time_limit=0.0),
        judge=made(name),
    )
    assert reply.fallback_reason is not None and "passed during the judge" in reply.fallback_reason


def test_nobody_is_asked_where_nothing_acts_on_a_verdict(engine: Engine) -> None:
    judge = EnsembleJudge(members=(Says(None),), rule="max", threshold=0.5)
    reply = engine.generate("can i jump?", judge=judge, sampling=SamplingParams(max_new_tokens=2))
    assert reply.verdict is None and reply.fallback_reason is None
