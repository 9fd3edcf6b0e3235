"""Execution backends: one file each, opened by name.

`open_session` imports a backend only when it is asked for, so that a device needs just the one it runs on.
"""

from __future__ import annotations

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.runtime.session import Session

__all__ = ["open_session"]


def open_session(bundle: Bundle, config: RuntimeConfig) -> Session:
    """Opens the bundle's graphs on the configured backend.

    Raises:
        BackendError: the backend is not installed or does not take the graphs.
    """
    if config.backend == "null":
        from safecode_trt.runtime.backends.null import NullSession

        return NullSession(bundle.manifest.geometry)
    if config.backend == "trt":
        from safecode_trt.runtime.backends.trt import TrtSession

        return TrtSession(bundle)
    from safecode_trt.runtime.backends.ort import OrtSession

    return OrtSession(bundle, threads=config.threads)
