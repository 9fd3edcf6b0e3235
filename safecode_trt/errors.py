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
|-- EndpointError      a model behind an address is down, slow or answers nonsense (whoever runs it)
|-- EvalError          a benchmark's files or a results file cannot be used (the caller)
`-- SteeringError      no trustworthy verdict or logits; the fail-safe takes over
"""

__all__ = [
    "BackendError",
    "BundleError",
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "EndpointError",
    "EvalError",
    "PictureError",
    "PromptError",
    "SafeCodeError",
    "SteeringError",
    "TraceError",
]


class SafeCodeError(Exception):
    """Base of all failures that are not a programmer's mistake; the message is one line for the user."""


class ConfigError(SafeCodeError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class CheckpointError(SafeCodeError):
    """A checkpoint folder is incomplete, contradicts itself or needs a feature that is not supported."""


class BundleError(SafeCodeError):
    """A bundle is missing, truncated, tampered with, or was not written by this package."""


class PictureError(SafeCodeError):
    """A file is missing, is not a picture, or is too large to be decoded safely."""


class PromptError(SafeCodeError):
    """A request cannot be turned into a prompt."""


class CapacityError(PromptError):
    """The prompt and the tokens asked for do not fit into the key/value cache."""


class BackendError(SafeCodeError):
    """An execution backend is not installed, refuses the graph, or failed while running it."""


class EndpointError(SafeCodeError):
    """A model behind an address cannot be reached, refuses, is too slow, or answers what cannot be read."""


class EvalError(SafeCodeError):
    """A benchmark's folder, a results file or a list of judgements is incomplete or contradicts itself."""


class TraceError(SafeCodeError):
    """A trace or an audit log cannot be written, or holds nothing that can be read."""


class SteeringError(SafeCodeError):
    """The logits or the verdict of a reply cannot be trusted; the configured fallback answers instead."""
