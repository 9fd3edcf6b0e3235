"""A stand-in of the Hugging Face Hub's HTTP interface, with large files on a second host as the hub has them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf")
API = re.compile(r"/api/models/(?P<name>.+)/revision/(?P<revision>[^/]+)")
FILE = re.compile(r"/(?P<name>.+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
BLOB = re.compile(r"/blobs/(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asked for, with the token and the range that it sent."""

    method: str
    path: str
    token: str | None
    range: str | None
    agent: str


@dataclass(kw_only=True)
class Repo:
    """A model: the files of each commit, and the commit of each branch and tag. A gated one has `token`s for it."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False
    tokens: tuple[str, ...] = ()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass(kw_only=True)
class Hub:
    """What there is, what was asked, and what goes wrong.

    `cuts` says after how many bytes the connection breaks when a large file is sent, once for each number; `spoiled`
    turns the last byte of large files; `xet` offers them in Xet storage too; `failing` is a status for every answer.
    """

    url: str = ""
    store: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    spoiled: bool = False
    xet: bool = False
    failing: int | None = None

    def asked(self, method: str, ending: str = "") -> list[str]:
        return [x.path for x in self.requests if x.method == method and x.path.endswith(ending)]

    def blobs(self) -> dict[str, bytes]:
        files = (
            file for repo in self.repos.values() for files in repo.commits.values() for file in files.values()
        )
        return {hashlib.sha256(data).hexdigest(): data for data in files}


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's name, which hangs on all that it holds."""
    digest = hashlib.sha1()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        quoted, hub = urlsplit(self.path).path, self.hub
        path = unquote(quoted)
        authorization = self.headers.get("Authorization") or ""
        token = authorization.removeprefix("Bearer ") or None
        hub.requests.append(
            Request(
                method=self.command,
                path=path,
                token=token,
                range=self.headers.get("Range"),
                agent=self.headers.get("User-Agent") or "",
            )
        )
        if hub.failing:
            self._send(b"", status=hub.failing)
        elif found := BLOB.fullmatch(path):
            self._send_blob(hub.blobs()[found["sha256"]])
        elif found := API.fullmatch(quoted):
            self._send_listing(unquote(found["name"]), unquote(found["revision"]))
        elif found := FILE.fullmatch(quoted):
            name, revision, file = map(unquote, found.groups())
            self._send_file(name, revision, file, token)
        else:
            self._send(b"", status=404)

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.hub.repos.get(name)
        if repo is None:  # the hub does not tell a stranger what is private and what is not there
            self._send(b"", status=401, headers={"X-Error-Code": "RepoNotFound"})
            return None
        found = repo.files(revision)
        if found is None:
            self._send(b"", status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return found

    def _send_listing(self, name: str, revision: str) -> None:
        if (found := self._found(name, revision)) is None:
            return
        commit, files = found
        siblings = []
        for file, data in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": blob}
            if file.endswith(LARGE):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        listing = {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self._send(json.dumps(listing).encode(), headers={"Content-Type": "application/json"})

    def _send_file(self, name: str, revision: str, file: str, token: str | None) -> None:
        if (found := self._found(name, revision)) is None:
            return
        repo, (commit, files) = self.hub.repos[name], found
        headers = {"X-Repo-Commit": commit}
        if repo.gated and token not in repo.tokens:
            self._send(b"", status=403 if token else 401, headers={**headers, "X-Error-Code": "GatedRepo"})
        elif file not in files:
            self._send(b"", status=404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        elif file.endswith(LARGE):
            data = files[file]
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            headers |= {"Location": f"{self.hub.store}/blobs/{sha256}"}
            if self.hub.xet:
                headers |= {"X-Xet-Hash": sha256, "X-Xet-Refresh-Route": f"{self.hub.url}/api/xet"}
            self._send(b"", status=302, headers=headers)
        else:
            data = files[file]
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self._send(data, headers={**headers, "ETag": f'"{etag}"'})

    def _send_blob(self, data: bytes) -> None:
        if self.hub.spoiled:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
        cut = self.hub.cuts.pop(0) if self.hub.cuts and self.command == "GET" else None
        self._send(data[start:], status=206 if wanted else 200, headers=headers, cut=cut)

    def _send(
        self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """The hub on 127.0.0.1, its store of large files on localhost: for a client two hosts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ExitStack() as stack:
        for host, name in (("127.0.0.1", "url"), ("localhost", "store")):
            http = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            http.daemon_threads = True
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(http.shutdown)
            setattr(hub, name, f"http://{host}:{http.server_address[1]}")
        yield hub
