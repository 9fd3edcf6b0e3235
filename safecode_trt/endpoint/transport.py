"""One HTTP POST of JSON until it is answered: retries, a limit on time and one on size. Knows no format."""

from __future__ import annotations

import http.client
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import IO

from safecode_trt import __version__
from safecode_trt.deadline import Deadline
from safecode_trt.errors import EndpointError

__all__ = ["MAX_BODY", "Transport"]

MAX_BODY = 4 << 20
BLOCK = 1 << 16
EXCERPT = 120
STRUCK_OUT = "***"


class _Again(Exception):
    """A failure after which another try may help; `pause` is what the server asks for, in seconds."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address; it is an error like others, and where it leads is not read."""

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class Transport:
    """Posts to one address. Proxies are those of the environment; redirects are not followed."""

    def __init__(
        self,
        url: str,
        *,
        shown: str,
        key: str,
        key_variable: str,
        retries: int,
        backoff: float,
    ) -> None:
        self._url, self._shown, self._key, self._key_variable = url, shown, key, key_variable
        self._key_written = _as_written(key)
        self._retries, self._backoff = retries, backoff
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, body: bytes, timeout: float) -> str:
        """The text of the first answer with status 200, within `timeout` seconds.

        Tries again after 429, 5xx and failed connections, with growing random pauses that are at least as long as
        the server asks for.

        Raises:
            EndpointError: no such answer within the time and the retries, or none that is UTF-8 and of sound size.
        """
        deadline = Deadline(timeout)
        pause = self._backoff
        tries = 0
        while True:
            tries += 1
            try:
                return self._within(deadline, body)
            except _Again as error:
                wait = max(pause * random.uniform(0.5, 1.5), error.pause)
                if tries > self._retries:
                    raise EndpointError(f"{self._shown} {error}, {tries} times") from None
                if wait >= deadline.left:
                    why = f"and {deadline} leave no time to try again"
                    raise EndpointError(f"{self._shown} {error}, {why}") from None
            time.sleep(wait)
            pause *= 2

    def _within(self, deadline: Deadline, body: bytes) -> str:
        """One try in a thread of its own: names are looked up and headers are read without any time limit."""
        outcome: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put(self._once(deadline, body))
            except Exception as error:
                outcome.put(error)

        threading.Thread(target=run, name="safecode-endpoint", daemon=True).start()
        try:
            found = outcome.get(timeout=deadline.left)
        except queue.Empty:
            raise EndpointError(f"{self._shown} did not answer within {deadline}") from None
        if isinstance(found, EndpointError | _Again):
            raise found
        if isinstance(found, Exception):  # whatever it is, it must not escape the caller's fail-safe
            why = self._clean(f"{type(found).__name__}: {found}")
            raise EndpointError(f"{self._shown} answered what cannot be dealt with ({why})") from None
        return found

    def _once(self, deadline: Deadline, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": f"safecode-trt/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            # A little longer than the wait for this thread, which is to say what has happened.
            with self._opener.open(request, timeout=deadline.left + 1.0) as response:
                return self._read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            text = str(reason) or type(reason).__name__
            raise _Again(f"cannot be reached ({self._clean(text)})") from None

    def _read(self, response: http.client.HTTPResponse, deadline: Deadline) -> str:
        parts, size = [], 0
        while block := response.read1(BLOCK):
            parts.append(block)
            size += len(block)
            if size > MAX_BODY:
                raise EndpointError(f"{self._shown} answered more than {MAX_BODY} bytes")
            if not deadline.left:
                raise EndpointError(f"{self._shown} did not answer within {deadline}")
        if response.length:  # read1 does not say that the rest is missing
            raise _Again("broke off its answer")
        try:
            return self._clean(b"".join(parts).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise EndpointError(f"{self._shown} answered what is not UTF-8 (byte {error.start})") from None

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        code = error.code
        try:
            name = HTTPStatus(code).phrase
        except ValueError:
            name = "unknown status"
        if code == HTTPStatus.TOO_MANY_REQUESTS or code >= 500:
            return _Again(f"answered {code} ({name})", _retry_after(error.headers.get("Retry-After")))
        if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return EndpointError(
                f"{self._shown} answered {code} ({name})",
                fix=f"put the key into the environment variable {self._key_variable}",
            )
        if 300 <= code < 400:
            return EndpointError(f"{self._shown} answered {code} ({name}); give the address that it leads to")
        try:
            excerpt = self._clean(error.read(BLOCK).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            excerpt = ""
        words = " ".join(excerpt.split())[:EXCERPT]
        return EndpointError(f"{self._shown} answered {code} ({name}): {words!r}")

    def _clean(self, text: str) -> str:
        return self._key_written.sub(STRUCK_OUT, text) if self._key else text


def _as_written(key: str) -> re.Pattern[str]:
    """The key in plain text and in JSON, which may escape any of its characters."""
    return re.compile("".join(rf"(?:\\?{re.escape(sign)}|\\u(?i:{ord(sign):04x}))" for sign in key))


def _retry_after(value: str | None) -> float:
    """Seconds to wait: the header has a number or a date."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        if then.tzinfo is None:
            then = then.replace(tzinfo=timezone.utc)
        seconds = (then - datetime.now(timezone.utc)).total_seconds()
    return seconds if 0 < seconds < float("inf") else 0.0
