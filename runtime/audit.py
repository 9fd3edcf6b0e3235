"""The audit log: one JSON line per reply, appended. Pictures are named by their hash and never stored."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

from safecode_trt.errors import ConfigError
from safecode_trt.runtime.reply import Reply

__all__ = ["AuditLog"]

AUDIT_SCHEMA_VERSION = 1


class AuditLog:
    """Appends to a file; a line is written in one call, so that two processes may share a log."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"the audit log {path} cannot be written: {error.strerror}") from error

    def write(self, reply: Reply, *, mode: str, prompt: str, image_sha256: str | None) -> None:
        """Adds the reply with its request; the time is UTC."""
        line = {
            "schema_version": AUDIT_SCHEMA_VERSION,
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "mode": mode,
            "prompt": prompt,
            "image_sha256": image_sha256,
            **reply.to_dict(),
        }
        os.write(self._descriptor, (json.dumps(line, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
