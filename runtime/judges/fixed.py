"""Judges that know their verdicts beforehand: one probability for everything, or a file of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.json_lines import read_values
from safecode_trt.policy.base import Verdict
from safecode_trt.records import from_dict
from safecode_trt.runtime.judges.judge import Case, case_key

__all__ = ["ConstantJudge", "FileJudge", "VerdictLine", "file_digest", "read_verdicts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantJudge:
    """The same P(unsafe) for every request."""

    p_unsafe: float
    threshold: float
    name: str = "constant"

    def judge(self, case: Case) -> Verdict:
        """The constant."""
        return Verdict(p_unsafe=self.p_unsafe, threshold=self.threshold, source=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictLine:
    """One line of a file of verdicts; `key` is an item's, or that of `case_key`."""

    key: str
    p_unsafe: float

    def __post_init__(self) -> None:
        if not self.key.strip():
            raise ConfigError("must not be empty", field="key")
        if not 0 <= self.p_unsafe <= 1:
            raise ConfigError(f"must be between 0 and 1, got {self.p_unsafe!r}", field="p_unsafe")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJudge:
    """Verdicts that were found earlier; the item's key goes before the content's."""

    verdicts: Mapping[str, float]
    threshold: float
    name: str = "file"

    def judge(self, case: Case) -> Verdict:
        """The verdict of the file.

        Raises:
            SteeringError: it has none for this request and picture.
        """
        for key in filter(None, (case.key, case_key(case.messages, case.images))):
            if key in self.verdicts:
                return Verdict(p_unsafe=self.verdicts[key], threshold=self.threshold, source=self.name)
        raise SteeringError(f"the file of verdicts has none for {case.key or key}")


def read_verdicts(path: Path) -> dict[str, float]:
    """P(unsafe) by key from JSON lines.

    Raises:
        ConfigError: the file cannot be read, a line is malformed, or a key is there twice; the message names the line.
    """
    verdicts: dict[str, float] = {}
    for where, value in read_values(path, ConfigError):
        line = from_dict(VerdictLine, value, where)
        if line.key in verdicts:
            raise ConfigError(f"has {line.key!r} again; each key may be there once", field="key", where=where)
        verdicts[line.key] = line.p_unsafe
    return verdicts


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file of verdicts.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
