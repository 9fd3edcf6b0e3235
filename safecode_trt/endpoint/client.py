"""Asks a model at an OpenAI-compatible address: one question, one answer, in bounded time and memory.

Knows HTTP and nothing of verdicts or rubrics. The key comes from an environment variable and is in no record, message
or file; where a server echoes it, it is struck out. Answers are kept on disk by the hash of all that was asked.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from safecode_trt.endpoint.answer_cache import AnswerCache
from safecode_trt.endpoint.transport import Transport
from safecode_trt.errors import ConfigError, EndpointError

__all__ = ["KEY_VARIABLE", "Answer", "Endpoint", "EndpointConfig", "EndpointSettings", "Question"]

KEY_VARIABLE = "SAFECODE_API_KEY"
PATH = "/chat/completions"
SHOWN = 120
LEAST = -sys.float_info.max

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """How a model at an address is asked, whichever it is.

    `key_variable` is the environment variable with the key (not set: none is sent). `timeout` is in seconds for an
    answer with all its retries; `backoff` is the first pause between two tries, which doubles. `cache` is a folder for
    answers; `top_logprobs` 0 asks for no log-probabilities.
    """

    key_variable: str = KEY_VARIABLE
    timeout: float = 30.0
    retries: int = 4
    backoff: float = 0.5
    cache: str | None = None
    top_logprobs: int = 10

    def __post_init__(self) -> None:
        if not math.isfinite(self.timeout) or self.timeout <= 0:
            raise ConfigError(f"must be a number of seconds above 0, got {self.timeout!r}", field="timeout")
        if not 0 <= self.retries <= 20:
            raise ConfigError(f"must be between 0 and 20, got {self.retries!r}", field="retries")
        if not math.isfinite(self.backoff) or self.backoff < 0:
            raise ConfigError(
                f"must be a number of seconds of at least 0, got {self.backoff!r}", field="backoff"
            )
        if not 0 <= self.top_logprobs <= 20:
            raise ConfigError(f"must be between 0 and 20, got {self.top_logprobs!r}", field="top_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Where a model is, and how it is asked; `url` is the address up to and without /chat/completions."""

    url: str
    model: str
    settings: EndpointSettings = EndpointSettings()

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not self.model.strip():
            raise ConfigError("must be the name of a model, got nothing", field="model")

    @classmethod
    def parse(cls, text: str, settings: EndpointSettings, *, field: str) -> EndpointConfig:
        """An endpoint as a command line has it: URL#MODEL. `field` is the setting that holds the text.

        Raises:
            ConfigError: it is none.
        """
        url, mark, model = text.rpartition("#")
        if not mark:
            raise ConfigError("must be URL#MODEL, with the model's name after the #; got no #", field=field)
        try:
            return cls(url=url, model=model, settings=settings)
        except ConfigError as error:
            raise ConfigError(f"has an endpoint whose {error}", field=field) from error

    @property
    def shown(self) -> str:
        """The address as it may be shown: without a query, which may hold a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: words, and pictures as the bytes of PNG files."""

    text: str
    system: str = ""
    pictures: tuple[bytes, ...] = ()
    max_tokens: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The model's words, and the log-probabilities of the leading candidates for its first token, if it gave them."""

    text: str
    first_token: tuple[tuple[str, float], ...] = field(default=())


class Endpoint:
    """A model at an address. Holds the key; not for several threads at once."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        settings = config.settings
        self._cache = AnswerCache(Path(settings.cache)) if settings.cache is not None else None
        parts = urlsplit(config.url)
        path = parts.path.rstrip("/").removesuffix(PATH) + PATH
        self._transport = Transport(
            parts._replace(path=path).geturl(),
            shown=config.shown,
            key=_read_key(settings.key_variable),
            key_variable=settings.key_variable,
            retries=settings.retries,
            backoff=settings.backoff,
        )

    def ask(self, question: Question, read: Callable[[Answer], T], *, timeout: float = math.inf) -> T:
        """What `read` makes of the answer; it raises EndpointError where it cannot. Only what it can read is kept.

        `timeout` is in seconds and counts where it is shorter than the configuration's.

        Raises:
            EndpointError: the server cannot be reached, refuses, is too slow, or answers what cannot be read.
        """
        body = json.dumps(self._payload(question), sort_keys=True).encode()
        if self._cache is not None and (kept := self._cache.get(self.config.url, body)) is not None:
            try:
                return read(_answer(kept))
            except (EndpointError, ValueError):  # by an older reader, or damaged: ask again
                pass
        text = self._transport.post(body, min(timeout, self.config.settings.timeout))
        try:
            answer = _answer(json.loads(text))
        except (ValueError, RecursionError) as error:
            excerpt = " ".join(text[:SHOWN].split())
            raise EndpointError(
                f"{self.config.shown} answered what is no chat completion ({error}): {excerpt!r}"
            ) from error
        found = read(answer)
        if self._cache is not None:
            self._cache.put(self.config.url, body, _completion(answer))
        return found

    def _payload(self, question: Question) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
            }
            for data in question.pictures
        ]
        content: Any = [*parts, {"type": "text", "text": question.text}] if parts else question.text
        messages = [{"role": "system", "content": question.system}] if question.system else []
        payload: dict[str, Any] = {
            "model": self.config.model,
            "messages": [*messages, {"role": "user", "content": content}],
            "max_tokens": question.max_tokens,
            "temperature": 0,
        }
        if count := self.config.settings.top_logprobs:
            payload |= {"logprobs": True, "top_logprobs": count}
        return payload


def _check_url(url: str) -> None:
    """Refuses an address that no request could be sent to. What may be a password is in no message."""
    wanted = "must be like https://host/v1, without a user, a password or a #"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{wanted}, in printable ASCII without spaces; got other characters", field="url")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{wanted}; got a host or a port that cannot be read", field="url") from None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or port == 0
        or "@" in parts.netloc
        or parts.fragment
    ):
        raise ConfigError(f"{wanted}, got {parts.scheme or '(no scheme)'}://{host or ''}", field="url")


def _read_key(variable: str) -> str:
    """The key, or nothing. What is no key is not named in the message."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{variable} holds no key: expected printable ASCII", field="key_variable")
    return key


def _answer(data: Any) -> Answer:
    """The first choice of a chat completion.

    Raises:
        ValueError: the data have another form.
    """
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("choices[0].message.content is missing") from error
    if not isinstance(text, str):
        raise ValueError("choices[0].message.content is no text")
    return Answer(text=text, first_token=_first_token(choice.get("logprobs")))


def _first_token(data: Any) -> tuple[tuple[str, float], ...]:
    """The candidates for the first token; empty where the server gives none, or not in this form."""
    try:
        pairs = [(entry["token"], entry["logprob"]) for entry in data["content"][0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError):
        return ()
    sound = all(
        isinstance(token, str) and type(logprob) in (int, float) and logprob <= 0 for token, logprob in pairs
    )
    # A whole number in JSON may have more digits than a float can hold.
    return tuple((token, float(max(logprob, LEAST))) for token, logprob in pairs) if sound else ()


def _completion(answer: Answer) -> dict[str, Any]:
    """An answer in the form in which servers give it."""
    candidates = [{"token": token, "logprob": logprob} for token, logprob in answer.first_token]
    return {
        "choices": [
            {"message": {"content": answer.text}, "logprobs": {"content": [{"top_logprobs": candidates}]}}
        ]
    }
