"""Execution backends, opened by name.

A backend is imported only when it is asked for, so that a device needs just the one it runs on.
"""

from __future__ import annotations

import logging

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.progress import Note
from safecode_trt.runtime.session import Session

__all__ = ["Note", "open_session"]

_log = logging.getLogger(__name__)


def open_session(bundle: Bundle, config: RuntimeConfig, *, note: Note | None = None) -> Session:
    """Opens the bundle's graphs on the configured backend.

    `note` is told what `auto` takes, and why no better one; without it the log is, as a warning.

    Raises:
        BackendError: the backend is not installed or does not take the graphs.
    """
    if config.backend == "auto":
        from safecode_trt.runtime.backends.auto import open_best

        return open_best(bundle, config, note or _log.warning, opener=open_session)
    if config.backend == "null":
        from safecode_trt.runtime.backends.null import NullSession

        return NullSession(bundle.manifest.geometry)
    if config.backend == "trt":
        from safecode_trt.runtime.backends.trt import TrtSession

        return TrtSession(bundle)
    from safecode_trt.runtime.backends.ort import OrtSession
    from safecode_trt.runtime.backends.ort_providers import PROVIDERS

    return OrtSession(
        bundle,
        provider=PROVIDERS[config.backend],
        threads=config.threads,
        allow_cpu_fallback=config.allow_cpu_fallback,
        keep_graphs=config.keep_graphs,
        check_hashes=config.check_hashes,
    )
