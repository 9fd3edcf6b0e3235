"""What the engines of a bundle take, and which of them a machine can run. Knows no TensorRT."""

from __future__ import annotations

from dataclasses import dataclass, replace

from safecode_trt import remedies
from safecode_trt.bundle import Bundle
from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.engine_entry import EngineEntry, Flavour
from safecode_trt.errors import BackendError

__all__ = ["MASK", "TensorRTRuntime", "choose_engine", "engine_spec", "misfit"]

MASK = "attention_bias"


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
        f"{runtime.compute_capability} ({'; '.join(others) or 'no engine was built'})",
        fix=remedies.build(bundle.path, "--flavour", runtime.flavour, "--sm", runtime.compute_capability),
    )


def engine_spec(graph: GraphSpec, capacity: int) -> GraphSpec:
    """The decoder's inputs and outputs in an engine: CAP is `capacity`, and the mask has an axis K of its own."""

    def fixed(tensor: TensorSpec) -> TensorSpec:
        shape = tensor.shape
        if tensor.name == MASK:
            return replace(tensor, shape=(*shape[:-1], "K"))
        return replace(tensor, shape=tuple(capacity if axis == "CAP" else axis for axis in shape))

    return GraphSpec(inputs=tuple(map(fixed, graph.inputs)), outputs=tuple(map(fixed, graph.outputs)))
