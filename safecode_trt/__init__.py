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

_MODULES = {
    "BackendError": "errors",
    "Bundle": "bundle",
    "BundleError": "errors",
    "CapacityError": "errors",
    "CheckpointError": "errors",
    "Chunk": "runtime.reply",
    "ConfigError": "errors",
    "DeadlineError": "errors",
    "EndpointError": "errors",
    "Engine": "engine",
    "EvalError": "errors",
    "JudgeConfig": "runtime.judges",
    "Message": "runtime.prompt",
    "PictureError": "errors",
    "Policy": "policy.base",
    "PromptError": "errors",
    "Reply": "runtime.reply",
    "RuntimeConfig": "config",
    "SafeCodeConfig": "config",
    "SafeCodeError": "errors",
    "SamplingParams": "config",
    "SteeringError": "errors",
    "TraceError": "errors",
    "Verdict": "policy.base",
    "make_judge": "runtime.judges",
    "open": "engine",
}
__all__ = [*_MODULES, "__version__"]

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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
