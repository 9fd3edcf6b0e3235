"""A server on 127.0.0.1 that answers as told, for clients that must bear everything."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the server sends; `drip` is the pause in seconds between single bytes of the body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    length: int | None = None


@dataclass(kw_only=True)
class Server:
    """Where it listens; what it was asked, with which headers, at which paths."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def completion(text: str, logprobs: dict[str, float] | None = None) -> Response:
    """An answer in the form of chat completions."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        candidates = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": candidates}]}
    return Response(body=json.dumps({"choices": [choice]}).encode())


@contextmanager
def serving(*responses: Response | Callable[[dict[str, Any]], Response]) -> Iterator[Server]:
    """Answers one request after the other, the last response again and again."""
    left = list(responses)
    server = Server(url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append(json.loads(body))
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            chosen = left.pop(0) if len(left) > 1 else left[0]
            try:
                self._send(chosen if isinstance(chosen, Response) else chosen(server.asked[-1]))
            except OSError:  # the client has given up
                self.close_connection = True

        def _send(self, response: Response) -> None:
            time.sleep(response.delay)
            self.send_response(response.status)
            self.send_header("Content-Length", str(response.length or len(response.body)))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            pieces = [bytes([byte]) for byte in response.body] if response.drip else [response.body]
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(response.drip)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
