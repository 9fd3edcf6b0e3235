"""TensorRT's and TensorRT-RTX's Python packages, which have nearly the same words: found, logged, chosen.

`tensorrt.X` in an annotation is a class of either package, `tensorrt_rtx.X` of the second alone, and
`tensorrt_10_15.X` of TensorRT from 10.15 on and of the second; so tests/test_tensorrt_api.py can hold every name
against packages that need a GPU to run.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safecode_trt import remedies
from safecode_trt.bundle import Bundle
from safecode_trt.engine_entry import FLAVOURS, EngineEntry, Flavour
from safecode_trt.errors import BackendError
from safecode_trt.runtime.engine_choice import TensorRTRuntime, choose_engine

__all__ = ["TensorRTLibrary", "choose_library"]

PACKAGES: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS: Mapping[Flavour, str] = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
OUT_OF_MEMORY = ("out of memory", "outofmemory", "memoryallocation")


@dataclass(frozen=True, slots=True)
class TensorRTLibrary:
    """An installed package: `version` is that of the library, which its engines are for; `trt` is the module."""

    flavour: Flavour
    version: str
    trt: Any

    @classmethod
    def load(cls, flavour: Flavour) -> TensorRTLibrary:
        """Imports the flavour's package.

        Raises:
            BackendError: it is not installed, or its libraries are not found.
        """
        try:
            trt = importlib.import_module(PACKAGES[flavour])
        except (ImportError, OSError) as error:
            raise BackendError(
                f"{PACKAGES[flavour]} cannot be imported ({error})",
                fix=remedies.install(EXTRAS[flavour]),
            ) from error
        return cls(flavour, str(trt.__version__), trt)

    @property
    def log(self) -> Any:
        """Keeps in `errors` what TensorRT has said of its failures since it was cleared last."""
        return _log(self.trt)

    def failed(self, what: str) -> BackendError | MemoryError:
        """The reason that TensorRT has logged, as an exception."""
        reason = next(iter(self.log.errors), "it says no reason")
        message = f"{self.flavour} {self.version} {what}: {reason}"
        if any(words in reason.lower() for words in OUT_OF_MEMORY):
            return MemoryError(message)
        return BackendError(message)


def choose_library(bundle: Bundle, compute_capability: str) -> tuple[TensorRTLibrary, EngineEntry]:
    """The package and the bundle's engines that run on a GPU of this compute capability.

    Raises:
        BackendError: there are none; the message says what there is, what is needed, and what brings it.
    """
    built = tuple(dict.fromkeys(engine.flavour for engine in bundle.manifest.engines))
    failures: list[BackendError] = []
    for flavour in built or FLAVOURS:
        try:
            library = TensorRTLibrary.load(flavour)
            here = TensorRTRuntime(
                flavour=flavour, version=library.version, compute_capability=compute_capability
            )
            return library, choose_engine(bundle, here)
        except BackendError as error:
            failures.append(error)
    reasons = "; ".join(failure.shown(failure.field, fix=False) for failure in failures)
    fixes = [failure.fix for failure in failures if failure.fix]
    raise BackendError(reasons, fix=", or ".join(fixes) or None)


@functools.cache
def _log(trt: Any) -> Any:
    """One logger for the process: TensorRT goes on using the first that it was given."""

    class Log(trt.ILogger):
        """Keeps errors for the message of ours; everything else is TensorRT's own affair."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

    return Log()
