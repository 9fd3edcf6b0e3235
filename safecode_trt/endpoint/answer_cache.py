"""Answers on disk, one JSON file each, named by the hash of what was asked. Holds no question and no key."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safecode_trt import atomic
from safecode_trt.errors import ConfigError

__all__ = ["AnswerCache"]


class AnswerCache:
    """A folder of answers; processes may share it, for every file appears whole or not at all.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the cache {folder} cannot be made: {error.strerror or error}") from error

    def get(self, address: str, body: bytes) -> Any:
        """The answer kept for this body to this address, None if there is none or its file is damaged."""
        try:
            return json.loads(self._path(address, body).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, address: str, body: bytes, answer: Any) -> None:
        """Keeps an answer. A full disk costs the answer's place in the cache and nothing else."""
        path = self._path(address, body)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            atomic.write_text(path, json.dumps(answer))

    def _path(self, address: str, body: bytes) -> Path:
        digest = hashlib.sha256(address.encode() + b"\0" + body).hexdigest()
        return self._folder / digest[:2] / f"{digest[2:]}.json"
