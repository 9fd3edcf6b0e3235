"""Every failure that a user of this package can meet, sorted by who can act on it.

SafeCodeError
|-- ConfigError        a setting is unknown or out of range          (the caller)
|-- CheckpointError    the checkpoint folder cannot be exported      (whoever made it)
|-- BundleError        a bundle is missing, broken or not ours       (export it again)
|-- PictureError       a file is no picture that can be used         (the caller)
|-- PromptError        a request cannot become a prompt              (the caller)
|   `-- CapacityError  prompt and answer do not fit the key/value cache
|-- BackendError       the execution backend is absent or has failed (the machine)
|-- TraceError         a trace or audit log cannot be read or written (the caller)
|-- EndpointError      a model at an address is down, slow or answers nonsense (whoever runs it)
|-- EvalError          a benchmark's files or a results file cannot be used (the caller)
`-- SteeringError      no trustworthy verdict or logits; the fail-safe takes over
    `-- DeadlineError  the time was over before the reply could be trusted

What a program may need of a failure is data: the kind is `code`, the setting at fault `field`, the remedy `fix`.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

__all__ = [
    "BackendError",
    "BundleError",
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "DeadlineError",
    "EndpointError",
    "EvalError",
    "PictureError",
    "PromptError",
    "SafeCodeError",
    "SteeringError",
    "TraceError",
]


E = TypeVar("E", bound="SafeCodeError")


class SafeCodeError(Exception):
    """Base of all failures that are not a programmer's mistake; its text is one line for the user.

    `code` names the kind and does not change. `field` is the setting or parameter at fault, by its name in the
    dataclass (nested: `release.unsafe_top_p`); the message then goes on after it, as in "must be at least 0". `where`
    is the file, line or object that holds the setting. `fix` is what mends it: a command line where there is one, in
    which words in capitals are for the user to fill in, else an instruction such as "pass --overwrite".
    """

    code: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, field: str | None = None, fix: str | None = None, where: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.field, self.fix, self.where = message, field, fix, where

    def __str__(self) -> str:
        return self.shown(self.field)

    def shown(self, subject: str | None, *, fix: bool = True) -> str:
        """The text with another name for the field, such as that of a command-line option; without the fix if asked."""
        place = f"{self.where}: " if self.where else ""
        start = f"{subject} " if subject else ""
        end = f"; fix: {self.fix}" if fix and self.fix else ""
        return f"{place}{start}{self.message}{end}"

    @classmethod
    def of(cls: type[E], error: SafeCodeError, *, where: str | None = None, field: str | None = None) -> E:
        """Another kind of failure with the same data; `where` and `field` replace those of `error`."""
        return cls(error.message, field=field or error.field, fix=error.fix, where=where or error.where)


class ConfigError(SafeCodeError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    code = "config"


class CheckpointError(SafeCodeError):
    """A checkpoint folder is incomplete, contradicts itself or needs a feature that is not supported."""

    code = "checkpoint"


class BundleError(SafeCodeError):
    """A bundle is missing, truncated, tampered with, or was not written by this package."""

    code = "bundle"


class PictureError(SafeCodeError):
    """A file is missing, is not a picture, or is too large to be decoded safely."""

    code = "picture"


class PromptError(SafeCodeError):
    """A request cannot be turned into a prompt."""

    code = "prompt"


class CapacityError(PromptError):
    """The prompt and the tokens asked for do not fit into the key/value cache."""

    code = "capacity"


class BackendError(SafeCodeError):
    """An execution backend is not installed, refuses the graph, or failed while running it."""

    code = "backend"


class EndpointError(SafeCodeError):
    """A model at an address cannot be reached, refuses, is too slow, or answers what cannot be read."""

    code = "endpoint"


class EvalError(SafeCodeError):
    """A benchmark's folder, a results file or a list of judgements is incomplete or contradicts itself."""

    code = "eval"


class TraceError(SafeCodeError):
    """A trace or an audit log cannot be written, or holds nothing that can be read."""

    code = "trace"


class SteeringError(SafeCodeError):
    """The logits or the verdict of a reply cannot be trusted; the configured fallback answers instead."""

    code = "steering"


class DeadlineError(SteeringError):
    """The time was over before the reply could be trusted."""

    code = "deadline"
