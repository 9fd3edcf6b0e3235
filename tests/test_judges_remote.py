"""A model behind an address as a judge: what it is shown, how it is read, and how it fails."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safecode_trt.endpoint import Answer
from safecode_trt.errors import EndpointError, SteeringError
from safecode_trt.runtime import Message
from safecode_trt.runtime.judges import Case
from safecode_trt.runtime.judges.remote import read_word
from tests.http_server import Response, completion, serving
from tests.judge_cases import CASE, NO_MODEL, PICTURE, made


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
            Case(model=NO_MODEL, messages=turns, images=[])
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
