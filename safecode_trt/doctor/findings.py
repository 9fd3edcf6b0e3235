"""What `doctor` finds out about each backend, by executing a decoder of one layer on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import ATTENTION_FORMS, AttentionForm
from safecode_trt.doctor import probe
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.ort_providers import (
    PROVIDERS,
    OrtProvider,
    first_line,
    load_onnxruntime,
    open_graph,
)
from safecode_trt.runtime.device import CudaDevice

__all__ = ["Finding", "find"]

State = Literal["ok", "warn", "absent", "fail"]
CUDA_PACKAGES = ("cuda-bindings", "cuda-python")
FLAVOURS = {"trt (tensorrt)": ("tensorrt", "trt"), "trt (tensorrt-rtx)": ("tensorrt_rtx", "trt-rtx")}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One backend. `absent` is nothing wrong: it is not installed, or there is no GPU for it.

    `executed` are the forms of the decoder that gave the right numbers, `largest_difference` is how far they were
    from numpy's at most, and `fix` is the command that helps.
    """

    backend: str
    state: State
    detail: str
    version: str | None = None
    device: str | None = None
    compute_capability: str | None = None
    executed: tuple[AttentionForm, ...] = ()
    largest_difference: float | None = None
    fix: str | None = None


def find(gpu: CudaDevice | None) -> Iterator[Finding]:
    """A finding for every backend; `gpu` is what the driver says is there."""
    for provider in PROVIDERS.values():
        yield _guarded(provider.backend, gpu, partial(_ort, provider, gpu))
    for name in FLAVOURS:
        yield _guarded(name, gpu, partial(_tensorrt, name, gpu))
    yield _guarded("cuda kernels", gpu, partial(_kernels, gpu))


def _guarded(name: str, gpu: CudaDevice | None, examine: Callable[[], Finding]) -> Finding:
    """Whatever a backend raises is what the doctor is asked about."""
    try:
        return examine()
    except Exception as error:
        return _explained(name, "fail" if gpu or name == "ort-cpu" else "absent", error)


def _explained(name: str, state: State, error: Exception) -> Finding:
    """A finding by an exception, with the remedy that it names."""
    if not isinstance(error, BackendError):
        return Finding(backend=name, state=state, detail=f"{type(error).__name__}: {first_line(error)}")
    return Finding(backend=name, state=state, detail=error.shown(error.field, fix=False), fix=error.fix)


def _ort(provider: OrtProvider, gpu: CudaDevice | None) -> Finding:
    try:
        ort = load_onnxruntime(provider)
    except BackendError as error:
        return _explained(provider.backend, "absent", error)
    on_cpu = provider.device == "cpu"
    base = Finding(
        backend=provider.backend,
        state="absent",
        detail="",
        version=str(ort.__version__),
        **({"device": "CPU"} if on_cpu else _device(gpu)),
    )
    if not on_cpu and gpu is None:
        return replace(base, detail="installed, and there is no GPU")
    # On the CPU no bundle has activations in float16 but those that were exported for TensorRT.
    dtypes: tuple[probe.Dtype, ...] = ("float32",) if on_cpu else ("float32", "float16")
    differences, failures = dict[AttentionForm, float](), list[str]()
    for form in ATTENTION_FORMS:
        if form == "decomposed" and not provider.scatters_in_place:
            continue
        try:
            differences[form] = max(_difference(dtype, _run_ort(provider, form, dtype)) for dtype in dtypes)
        except Exception as error:  # one form may run where the other does not
            failures.append(f"{form}: {first_line(error)}")
    return _judge(base, differences, failures)


def _judge(base: Finding, differences: Mapping[AttentionForm, float], failures: list[str]) -> Finding:
    if not differences:
        return replace(base, state="fail", detail="; ".join(failures))
    done = replace(
        base, executed=tuple(differences), largest_difference=max(differences.values()), state="ok"
    )
    said = f"executed {' and '.join(differences)}, largest difference {done.largest_difference:.0e}"
    if not failures:
        return replace(done, detail=said)
    only = f"{said}; only bundles exported with --attention {next(iter(differences))} run here"
    return replace(done, state="warn", detail=f"{only} ({'; '.join(failures)})")


def _run_ort(provider: OrtProvider, form: AttentionForm, dtype: probe.Dtype) -> dict[str, NDArray[Any]]:
    path, shapes = probe.graph_path(form, dtype), probe.shape_nodes(form, dtype)
    session = open_graph(path, provider=provider, threads=1, spin=False, shape_nodes=shapes)
    names = list(probe.expected(dtype))
    return dict(zip(names, session.run(names, probe.feeds(dtype)), strict=True))


def _difference(dtype: probe.Dtype, found: Mapping[str, NDArray[Any]]) -> float:
    """How far the outputs are from numpy's.

    Raises:
        BackendError: farther than rounding explains.
    """
    pairs = [(found[name].astype(np.float32), right) for name, right in probe.expected(dtype).items()]
    difference = max(float(np.abs(value - right).max()) for value, right in pairs)
    if not difference <= probe.TOLERANCE[dtype]:  # NaN is wrong too
        raise BackendError(f"it computes wrongly in {dtype}: the largest difference is {difference:.1g}")
    return difference


def _tensorrt(name: str, gpu: CudaDevice | None) -> Finding:
    package, extra = FLAVOURS[name]
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        detail = f"{package} cannot be imported: {first_line(error)}"
        return Finding(
            backend=name, state="absent", detail=detail, fix=f"pip install 'safecode-trt[{extra},cuda]'"
        )
    base = Finding(backend=name, state="ok", detail="", version=str(trt.__version__), **_device(gpu))
    if gpu is None:
        return replace(base, state="absent", detail="installed, and there is no GPU to execute an engine on")
    from safecode_trt.doctor.probe_engine import run_engine

    difference = _difference("float16", run_engine(trt, "float16"))
    return _judge(base, {"decomposed": difference}, [])


def _kernels(gpu: CudaDevice | None) -> Finding:
    """The fused step on two rows of logits, whose greedy token numpy knows."""
    from safecode_trt.ops import bindings
    from safecode_trt.ops.bindings import checked
    from safecode_trt.ops.cuda import DeviceStep
    from safecode_trt.ops.fused import FusedSettings

    try:
        driver = bindings.load_driver()
    except BackendError as error:
        return _explained("cuda kernels", "absent", error)
    rows = np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)
    settings = FusedSettings(form="difference", alpha=0.3)
    with closing(DeviceStep(vocabulary=rows.shape[1], refusal_ids=np.arange(4))) as step:
        logits = checked(driver.cuMemAlloc(rows.nbytes), "cuMemAlloc")
        checked(driver.cuMemcpyHtoD(logits, rows.ctypes.data, rows.nbytes), "cuMemcpyHtoD")
        token = step.run(int(logits), rows=2, half=False, settings=settings).token_id
        driver.cuMemFree(logits)
    right = int((rows[0] - np.float32(0.3) * rows[1]).argmax())
    if token != right:
        raise BackendError(f"the fused step chooses token {token} where numpy chooses {right}")
    version = next((metadata.version(name) for name in CUDA_PACKAGES if _installed(name)), None)
    detail = "executed a steered step, the token is numpy's"
    return Finding(backend="cuda kernels", state="ok", detail=detail, version=version, **_device(gpu))


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _device(gpu: CudaDevice | None) -> dict[str, Any]:
    if gpu is None:
        return {}
    capability = f"{gpu.compute_capability[:-1]}.{gpu.compute_capability[-1]}"
    return {"device": gpu.name, "compute_capability": capability}
