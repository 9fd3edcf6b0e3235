"""Vision-language models on the device, with safety-aware contrastive decoding.

    import safecode_trt

    engine = safecode_trt.open("build/demo-bundle")
    reply = engine.generate("can i pour water on it?", image="photo.png")
    print(reply.text, reply.verdict)

docs/python.md shows the rest. Names are loaded when they are first used, so that the import itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "ConfigError",
    "DeadlineError",
    "EndpointError",
    "Engine",
    "EvalError",
    "JudgeConfig",
    "Message",
    "PictureError",
    "Policy",
    "PromptError",
    "Reply",
    "RuntimeConfig",
    "SafeCodeConfig",
    "SafeCodeError",
    "SamplingParams",
    "SteeringError",
    "TraceError",
    "Verdict",
    "__version__",
    "make_judge",
    "open",
]
# Where the names are; the others are errors.
_MODULES = {
    "Bundle": "bundle",
    "Chunk": "runtime.reply",
    "Engine": "engine",
    "JudgeConfig": "runtime.judges",
    "Message": "runtime.prompt",
    "Policy": "policy.base",
    "Reply": "runtime.reply",
    "RuntimeConfig": "config",
    "SafeCodeConfig": "config",
    "SamplingParams": "config",
    "Verdict": "policy.base",
    "make_judge": "runtime.judges",
    "open": "engine",
}

if TYPE_CHECKING:
    from safecode_trt.bundle import Bundle
    from safecode_trt.config import RuntimeConfig, SafeCodeConfig, SamplingParams
    from safecode_trt.engine import Engine, open
    from safecode_trt.errors import (
        BackendError,
        BundleError,
        CapacityError,
        CheckpointError,
        ConfigError,
        DeadlineError,
        EndpointError,
        EvalError,
        PictureError,
        PromptError,
        SafeCodeError,
        SteeringError,
        TraceError,
    )
    from safecode_trt.policy.base import Policy, Verdict
    from safecode_trt.runtime.judges import JudgeConfig, make_judge
    from safecode_trt.runtime.prompt import Message
    from safecode_trt.runtime.reply import Chunk, Reply


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
