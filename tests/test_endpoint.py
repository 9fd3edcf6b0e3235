"""The client of OpenAI-compatible addresses against a server that is slow, down, wrong or talkative."""

from __future__ import annotations

import base64
import json
import socket
import sys
import time
import traceback
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.deadline import Deadline
from safecode_trt.endpoint import Answer, Endpoint, EndpointConfig, EndpointSettings, Question
from safecode_trt.endpoint.transport import MAX_BODY, Transport, _retry_after
from safecode_trt.errors import ConfigError, EndpointError
from tests.http_server import Response, completion, serving

KEY = "sk-a-key-that-nobody-may-see"
QUESTION = Question(text="safe?", system="You judge.", pictures=(b"\x89PNG-1",))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECODE_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url: str, *, timeout: float = 5.0, retries: int = 2, cache: Path | None = None) -> Endpoint:
    return Endpoint(
        EndpointConfig(
            url=url,
            model="m",
            settings=EndpointSettings(
                timeout=timeout,
                retries=retries,
                backoff=0.005,
                cache=None if cache is None else str(cache),
            ),
        )
    )


def words(answer: Answer) -> str:
    return answer.text


def failure(url: str, *, timeout: float = 5.0, retries: int = 0) -> str:
    with pytest.raises(EndpointError) as caught:
        endpoint(url, timeout=timeout, retries=retries).ask(QUESTION, words)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_what_is_sent_and_read() -> None:
    with serving(completion("unsafe", {"unsafe": -0.1, "safe": -2.5})) as server:
        answer = endpoint(server.url).ask(QUESTION, lambda answer: answer)
        endpoint(server.url + "/chat/completions").ask(Question(text="only words"), words)
    assert answer == Answer(text="unsafe", first_token=(("unsafe", -0.1), ("safe", -2.5)))
    asked, plain = server.asked
    system, user = asked["messages"]
    assert system == {"role": "system", "content": "You judge."}
    head, _, data = user["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == QUESTION.pictures[0]
    assert user["content"][1] == {"type": "text", "text": "safe?"}
    assert asked["temperature"] == 0 and asked["logprobs"] is True and asked["model"] == "m"
    assert plain["messages"] == [{"role": "user", "content": "only words"}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_no_key_is_sent_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFECODE_API_KEY")
    with serving(completion("safe")) as server:
        assert endpoint(server.url).ask(QUESTION, words) == "safe"
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_tries_again(status: int) -> None:
    with serving(Response(status=status), Response(status=status), completion("safe")) as server:
        assert endpoint(server.url).ask(QUESTION, words) == "safe"
    assert len(server.asked) == 3


def test_it_waits_as_long_as_the_server_asks() -> None:
    with serving(Response(status=429, headers={"Retry-After": "0.2"}), completion("safe")) as server:
        begin = time.monotonic()
        endpoint(server.url).ask(QUESTION, words)
    assert time.monotonic() - begin >= 0.2


def test_it_does_not_wait_longer_than_it_may() -> None:
    with serving(Response(status=429, headers={"Retry-After": "3600"})) as server:
        begin = time.monotonic()
        message = failure(server.url, retries=5)
    assert "answered 429 (Too Many Requests), and 5 s leave no time" in message
    assert time.monotonic() - begin < 2 and len(server.asked) == 1


def test_the_date_of_a_pause() -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 25 < _retry_after(format_datetime(soon)) <= 30
    assert _retry_after("soon") == _retry_after("-3") == _retry_after("nan") == _retry_after(None) == 0


def test_a_query_is_sent_and_not_shown() -> None:
    with serving(Response(status=404)) as server:
        message = failure(server.url + "?version=secret")
    assert "answered 404 (Not Found)" in message and "secret" not in message
    assert server.paths == ["/v1/chat/completions?version=secret"]


def test_tries_run_out() -> None:
    with serving(Response(status=503)) as server:
        assert "answered 503 (Service Unavailable), 3 times" in failure(server.url, retries=2)
    assert len(server.asked) == 3


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "cannot be reached" in failure(f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize(
    "slow", [Response(delay=5), Response(body=b"x" * 100, drip=0.1)], ids=["late", "byte by byte"]
)
def test_the_deadline_is_one_of_all_tries_and_of_the_whole_body(slow: Response) -> None:
    with serving(slow) as server:
        begin = time.monotonic()
        assert "did not answer within 0.3 s" in failure(server.url, timeout=0.3, retries=9)
    assert time.monotonic() - begin < 1


def test_a_body_without_end_is_not_read() -> None:
    with serving(Response(body=b" " * (MAX_BODY + 2))) as server:
        assert f"more than {MAX_BODY} bytes" in failure(server.url)


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    with serving(Response(body=b"{", length=100), completion("safe")) as server:
        assert endpoint(server.url).ask(QUESTION, words) == "safe"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"[" * 10000,
    ],
)
def test_what_is_no_chat_completion(body: bytes) -> None:
    with serving(Response(body=body)) as server:
        assert "what is no chat completion" in failure(server.url)


def test_bytes_that_are_no_text() -> None:
    with serving(Response(body=b'{"a": "\xff"}')) as server:
        assert "not UTF-8 (byte 7)" in failure(server.url)


def test_log_probabilities_that_are_none_are_left_out() -> None:
    with serving(completion("safe", {"safe": float("nan")}), completion("safe", {"safe": 3.0})) as server:
        for _ in range(2):
            assert endpoint(server.url).ask(QUESTION, lambda answer: answer).first_token == ()


def test_a_log_probability_of_many_digits() -> None:
    with serving(completion("safe", {"safe": -(10**400)})) as server:
        answer = endpoint(server.url).ask(QUESTION, lambda answer: answer)
    assert answer.first_token == (("safe", -sys.float_info.max),)


@pytest.mark.parametrize("location", ["http://[", "http://host:port/", "//[/"])
def test_a_redirect_to_nowhere(location: str) -> None:
    with serving(Response(status=302, headers={"Location": location})) as server:
        assert "answered 302 (Found); give the address" in failure(server.url)


def test_what_nobody_expects_is_an_endpoints_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Transport, deadline: Deadline, body: bytes) -> str:
        raise RuntimeError(f"with {KEY}")

    monkeypatch.setattr(Transport, "_once", broken)
    assert "cannot be dealt with (RuntimeError: with ***)" in failure("http://127.0.0.1:9/v1", retries=3)


def test_refusals_say_what_to_do() -> None:
    with serving(Response(status=401, body=KEY.encode())) as server:
        assert (
            "answered 401 (Unauthorized); fix: put the key into the environment variable SAFECODE"
            in failure(server.url)
        )
    with serving(Response(status=400, body=f"bad key {KEY} in {{}}".encode())) as server:
        assert "answered 400 (Bad Request): 'bad key *** in {}'" in failure(server.url)


def test_the_key_is_not_carried_to_another_address() -> None:
    with serving(completion("safe")) as other:
        away = Response(status=307, headers={"Location": other.url + "/chat/completions"})
        with serving(away) as server:
            assert "answered 307 (Temporary Redirect); give the address" in failure(server.url)
    assert other.asked == []


def test_the_key_is_struck_out_of_answers_and_kept_nowhere(tmp_path: Path) -> None:
    with serving(completion(f"your key is {KEY}")) as server:
        asked = endpoint(server.url, cache=tmp_path)
        assert asked.ask(QUESTION, words) == "your key is ***"
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 1 and KEY.encode() not in kept[0]
    assert KEY not in repr(asked.config)


@pytest.mark.parametrize("written", ["sk\\/a+b", "sk/a+b", "\\u0073k\\u002Fa\\u002bb"])
def test_the_key_is_struck_out_however_json_writes_it(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECODE_API_KEY", "sk/a+b")
    body = completion("key KEY.").body.replace(b"KEY", written.encode())
    with serving(Response(body=body), Response(body=written.encode())) as server:
        assert endpoint(server.url).ask(QUESTION, words) == "key ***."
        assert failure(server.url).endswith("'***'")


@pytest.mark.parametrize("bad", ["ключ", "a\nb"])
def test_a_key_that_is_none_is_not_shown(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECODE_API_KEY", bad)
    with pytest.raises(ConfigError, match="SAFECODE_API_KEY holds no key") as caught:
        endpoint("http://127.0.0.1:1/v1")
    assert bad not in "".join(traceback.format_exception(caught.value))


def test_an_answer_is_asked_for_once(tmp_path: Path) -> None:
    with serving(completion("safe", {"safe": -0.5})) as server:
        for _ in range(2):
            answer = endpoint(server.url, cache=tmp_path).ask(QUESTION, lambda answer: answer)
            assert answer.first_token == (("safe", -0.5),)
        assert len(server.asked) == 1
        endpoint(server.url, cache=tmp_path).ask(Question(text="safe?", pictures=(b"other",)), words)
    assert len(server.asked) == 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"choices": 3}'])
def test_a_damaged_file_of_the_cache_is_asked_for_again(damage: bytes, tmp_path: Path) -> None:
    with serving(completion("safe")) as server:
        asked = endpoint(server.url, cache=tmp_path)
        asked.ask(QUESTION, words)
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
        path.write_bytes(damage)
        assert asked.ask(QUESTION, words) == "safe"
    assert len(server.asked) == 2 and json.loads(path.read_bytes())["choices"]


def test_an_answer_that_the_reader_rejects_is_not_kept(tmp_path: Path) -> None:
    def strict(answer: Answer) -> str:
        if answer.text != "safe":
            raise EndpointError("unreadable")
        return answer.text

    with serving(completion("maybe"), completion("safe")) as server:
        asked = endpoint(server.url, cache=tmp_path)
        with pytest.raises(EndpointError, match="unreadable"):
            asked.ask(QUESTION, strict)
        assert asked.ask(QUESTION, strict) == "safe"


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        endpoint("http://127.0.0.1:1/v1", cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "127.0.0.1:80"},
        {"url": "file:///etc/hosts"},
        {"url": "http://user:secret@host/v1"},
        {"url": "http://:secret@host/v1"},
        {"url": "http://@host/v1"},
        {"url": "http://user:secret@[::1/v1"},
        {"url": "http://[::1/v1"},
        {"url": "http://host/ä"},
        {"url": "http://host:abc/v1"},
        {"url": "http://host:99999/v1"},
        {"url": "http://host:0/v1"},
        {"url": "http://host/a b"},
        {"url": "http://host\n/v1"},
        {"url": "http://host/v1#part"},
        {"model": " "},
    ],
)
def test_endpoints_that_cannot_be_asked(wrong: dict[str, object]) -> None:
    settings: dict[str, object] = {"url": "http://host/v1", "model": "m", **wrong}
    with pytest.raises(ConfigError) as caught:
        EndpointConfig(**settings)  # type: ignore[arg-type]
    assert caught.value.field in wrong
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0.0}, {"timeout": float("nan")}, {"retries": -1}, {"backoff": -1.0}, {"top_logprobs": 21}],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        EndpointSettings(**wrong)
    assert [caught.value.field] == [*wrong]
