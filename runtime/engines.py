"""Which of a bundle's engines a machine can run. Knows no TensorRT: what is installed is told."""

from __future__ import annotations

from dataclasses import dataclass

from safecode_trt.bundle import Bundle
from safecode_trt.errors import BackendError
from safecode_trt.manifest import EngineEntry, Flavour

__all__ = ["TensorRTRuntime", "choose_engine", "misfit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTRuntime:
    """What would run an engine: a TensorRT of some version on a GPU of some compute capability ("86" is 8.6)."""

    flavour: Flavour
    version: str
    compute_capability: str


def misfit(engine: EngineEntry, runtime: TensorRTRuntime) -> str | None:
    """Why an engine does not run there, None if it does.

    Engines of either flavour are for exactly the version that built them.
    """
    if engine.flavour != runtime.flavour:
        return f"for {engine.flavour}"
    if engine.version != runtime.version:
        return f"of version {engine.version}"
    if runtime.compute_capability not in engine.compute_capabilities:
        return f"for compute capability {', '.join(engine.compute_capabilities)}"
    return None


def choose_engine(bundle: Bundle, runtime: TensorRTRuntime) -> EngineEntry:
    """The engine of the bundle that runs there.

    Raises:
        BackendError: there is none; the message says what there is, what is needed, and what builds it.
    """
    others = []
    for engine in bundle.manifest.engines:
        reason = misfit(engine, runtime)
        if reason is None:
            return engine
        others.append(f"{engine.folder} is {reason}")
    raise BackendError(
        f"{bundle.path} has no engine for {runtime.flavour} {runtime.version} on compute capability "
        f"{runtime.compute_capability} ({'; '.join(others) or 'no engine was built'}); run: safecode-trt build "
        f"{bundle.path} --flavour {runtime.flavour} --sm {runtime.compute_capability}"
    )
