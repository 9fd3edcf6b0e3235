"""ONNX Runtime's providers: what each needs, how a graph is opened on it, and where its nodes really are."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from safecode_trt import remedies
from safecode_trt.config import Backend
from safecode_trt.errors import BackendError

__all__ = [
    "CPU",
    "PROVIDERS",
    "OrtProvider",
    "cpu_nodes",
    "first_line",
    "graph_options",
    "load_onnxruntime",
    "open_graph",
]

RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
OPTIMIZATION_LEVEL = "ORT_ENABLE_ALL"
ENTRIES: Mapping[str, str] = {
    # Level 4 multiplies in int8: at the other levels two rows cost more than two runs of one.
    "session.qdq_matmulnbits_accuracy_level": "4",
    # Most of a large decoder's opening is packing weights, which is one thread's work unless asked otherwise.
    "session.prepack.enable_parallel": "1",
}
NAMED_NODES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtProvider:
    """One of ONNX Runtime's execution providers, as a backend.

    `execution` is ONNX Runtime's name of it, `extra` ours of the packages. Its tensors are on `device`. `behind` are
    the providers of the same device for what it does not take. `plugin` is the package that brings its library.
    """

    backend: Backend
    execution: str
    extra: str
    device: Literal["cpu", "cuda"] = "cuda"
    options: Mapping[str, str] = field(default_factory=dict)
    behind: tuple[str, ...] = ()
    plugin: str | None = None
    # Whether it may write a scatter's result to where its input is. TensorRT promises it for its own cache update only.
    scatters_in_place: bool = True


CPU = OrtProvider(backend="ort-cpu", execution="CPUExecutionProvider", extra="cpu", device="cpu")
CUDA = OrtProvider(
    backend="ort-cuda",
    execution="CUDAExecutionProvider",
    extra="gpu",
    options={
        "use_tf32": "0",  # float32 as on the CPU
        "cudnn_conv_algo_search": "HEURISTIC",  # trying all takes long for every new size of a picture
        "arena_extend_strategy": "kSameAsRequested",  # powers of two are too much for a Jetson
    },
)
TENSORRT = OrtProvider(
    backend="ort-tensorrt",
    execution="TensorrtExecutionProvider",
    extra="gpu",
    behind=(CUDA.execution,),
    scatters_in_place=False,
)
TRT_RTX = OrtProvider(
    backend="ort-trt-rtx",
    execution="NvTensorRTRTXExecutionProvider",
    extra="ort-trt-rtx",
    plugin="onnxruntime_ep_nv_tensorrt_rtx",
    scatters_in_place=False,
)
PROVIDERS = {provider.backend: provider for provider in (CPU, CUDA, TENSORRT, TRT_RTX)}


def load_onnxruntime(provider: OrtProvider) -> Any:
    """The package onnxruntime, with the provider in it.

    Raises:
        BackendError: it is not installed, or is one without this provider.
    """
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError("onnxruntime is not installed", fix=install_command(provider)) from error
    if provider.plugin:
        _register(ort, provider)
    elif provider.execution not in ort.get_available_providers():  # what is listed may still not load
        raise BackendError(
            f"this ONNX Runtime {ort.__version__} comes without {provider.execution}",
            fix=f"pip uninstall onnxruntime && {install_command(provider)}",
        )
    elif provider.device == "cuda" and hasattr(ort, "preload_dlls"):
        # CUDA's libraries from its Python packages, where the loader does not look. It prints what it misses.
        with redirect_stdout(sys.stderr):
            ort.preload_dlls()
    return ort


def install_command(provider: OrtProvider) -> str:
    """What installs a provider."""
    return remedies.install(provider.extra)


def open_graph(
    path: Path,
    *,
    provider: OrtProvider = CPU,
    threads: int = 0,
    spin: bool = True,
    allow_cpu_fallback: bool = False,
    entries: Mapping[str, str] = MappingProxyType({}),
    optimized: Path | None = None,
    shape_nodes: Collection[str] = (),
) -> Any:
    """An onnxruntime.InferenceSession on a provider, all of it unless `allow_cpu_fallback`.

    `entries` are further session options; `optimized` is where the optimised graph is written, its weights next to it.
    `shape_nodes` are the names of the nodes that only compute shapes, which may be on the CPU.

    Raises:
        BackendError: ONNX Runtime or the provider is not installed or does not take the graph, or leaves nodes that
            work on activations or weights to the CPU.
    """
    ort = load_onnxruntime(provider)
    on_device = provider.device != "cpu"
    knows_placement = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
    options = _session_options(ort, threads, spin)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        for name, value in (("file_name", f"{optimized.name}.data"), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
    if on_device and knows_placement:
        options.add_session_config_entry(RECORD_PLACEMENT, "1")
    elif on_device and not allow_cpu_fallback:
        # An older ONNX Runtime can only refuse by itself: nodes that compute shapes too, and it names none.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = _make_session(ort, path, provider, options)
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        line = first_line(error)
        hint = (
            "; a newer ONNX Runtime names the nodes; or pass --allow-cpu-fallback"
            if "fallback" in line
            else ""
        )
        raise BackendError(
            f"ONNX Runtime {ort.__version__} does not take {path} on {provider.execution}: {line}{hint}"
        ) from error
    if provider.execution not in session.get_providers():
        raise BackendError(
            f"{provider.execution} is installed and does not load: a GPU or one of its libraries (CUDA, cuDNN, "
            "TensorRT) is missing; ONNX Runtime's lines above name it",
            fix="safecode-trt doctor",
        )
    if on_device and knows_placement:
        _check_placement(session, path, provider, shape_nodes, allow_cpu_fallback)
    return session


def graph_options() -> Mapping[str, str]:
    """The session options that an optimised graph depends on; threads only say how it runs."""
    return {"graph_optimization_level": OPTIMIZATION_LEVEL, **ENTRIES}


def cpu_nodes(session: Any, shape_nodes: Collection[str]) -> tuple[str, ...]:
    """The nodes of a graph that ONNX Runtime leaves to the CPU, but for those named in `shape_nodes`.

    ONNX Runtime puts what computes shapes there on purpose: their results are needed on the host. A node that
    ONNX Runtime has made itself counts as one that is left, whatever it computes.
    """
    left, exempt = _nodes_on(session, CPU.execution), frozenset(shape_nodes)
    return tuple(f"{node.op_type} {node.name}" for node in left if node.name not in exempt)


def _session_options(ort: Any, threads: int, spin: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Patterns are kept per input shape, and hardly any two prefills have the same.
    options.enable_mem_pattern = False
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, OPTIMIZATION_LEVEL)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    for name, value in ENTRIES.items():
        options.add_session_config_entry(name, value)
    return options


def _make_session(ort: Any, path: Path, provider: OrtProvider, options: Any) -> Any:
    """Without ONNX Runtime's own way to go on with another provider when one fails."""
    if provider.plugin:
        devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.execution]
        options.add_provider_for_devices(devices[:1], dict(provider.options))
        return ort.InferenceSession(str(path), options, enable_fallback=0)
    providers = [(provider.execution, dict(provider.options)), *((name, {}) for name in provider.behind)]
    return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)


def _register(ort: Any, provider: OrtProvider) -> None:
    """Loads a plug-in's library, once in a process, and finds a device for it."""
    try:
        plugin = importlib.import_module(str(provider.plugin))
    except ImportError as error:
        raise BackendError(f"{provider.plugin} is not installed", fix=install_command(provider)) from error
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendError(
            f"ONNX Runtime {ort.__version__} takes no plug-ins", fix="pip install -U onnxruntime"
        )

    def devices() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == provider.execution]

    try:
        if not devices():
            ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as error:  # see open_graph
        raise BackendError(f"{provider.plugin} does not load: {first_line(error)}") from error
    if not devices():
        raise BackendError(
            f"{provider.plugin} finds no GPU that it supports", fix="nvidia-smi shows what is there"
        )


def _check_placement(
    session: Any, path: Path, provider: OrtProvider, shape_nodes: Collection[str], allow_cpu_fallback: bool
) -> None:
    if not _nodes_on(session, provider.execution):
        raise BackendError(
            f"{provider.execution} takes no node of {path}",
            fix="choose another --backend; safecode-trt doctor shows which work here",
        )
    left = cpu_nodes(session, shape_nodes)
    if left and not allow_cpu_fallback:
        more = f" and {len(left) - NAMED_NODES} more" if len(left) > NAMED_NODES else ""
        raise BackendError(
            f"{provider.execution} leaves nodes of {path} to the CPU: {', '.join(left[:NAMED_NODES])}{more}",
            fix="to run it nevertheless, pass --allow-cpu-fallback",
        )


def _nodes_on(session: Any, execution: str) -> list[Any]:
    return [
        node
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == execution
        for node in part.get_nodes()
    ]


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
