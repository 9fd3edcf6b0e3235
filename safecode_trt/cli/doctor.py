"""safecode-trt doctor: can this machine run a bundle?"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from safecode_trt import __version__
from safecode_trt.cli import console
from safecode_trt.cli.options import FOLDER, as_json
from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.contract import AttentionForm
from safecode_trt.errors import BackendError, SafeCodeError

__all__ = ["Check", "command"]

ENOUGH_MEMORY = 300_000_000  # what the demo may take
ABSENT_IS_FINE = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx", "torch": "export"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report; `fail` makes the exit code 1."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


@click.command("doctor", short_help="Check this machine.")
@click.argument("bundle", type=FOLDER, required=False)
@as_json
def command(bundle: Path | None, as_json: bool) -> None:
    """Check Python, the backend and the memory, and BUNDLE if it is given, by using them.

    \b
    Example:
      safecode-trt doctor build/demo-bundle
    """
    checks = [
        Check(name="python", state="ok", detail=f"{platform.python_version()}, safecode-trt {__version__}"),
        _attempt("onnxruntime", _onnxruntime),
        _opset_24(),
        *(_optional(module, extra) for module, extra in ABSENT_IS_FINE.items()),
        _memory(),
    ]
    if bundle:
        path = bundle
        checks.append(_attempt("bundle", lambda: _one_token(path)))
    if as_json:
        console.emit_json([asdict(check) for check in checks])
    else:
        for check in checks:
            click.echo(
                f"{check.state:4}  {check.name:12}  {console.printable(' '.join(check.detail.split()))}"
            )
    if any(check.state == "fail" for check in checks):
        raise BackendError("this machine is not ready; see the lines marked fail")


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, state="ok", detail=check())
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed; pip install 'safecode-trt[cpu]'"
        return Check(name=name, state="fail", detail=missing)
    except SafeCodeError as error:
        return Check(name=name, state="fail", detail=str(error))
    except Exception as error:  # whatever a backend raises is what the doctor is asked about
        return Check(name=name, state="fail", detail=f"{type(error).__name__}: {error}")


def _execute(form: AttentionForm) -> str:
    import numpy as np
    import onnxruntime

    from safecode_trt.cli import probe

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it would warn that the cache is copied, which is meant here
    graph = probe.graph_bytes(form)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, dict(probe.feeds(form)))
    difference = float(np.abs(found - probe.expected()).max())
    if not difference < 1e-5:
        raise BackendError(f"onnxruntime {onnxruntime.__version__} computes attention wrongly")
    return f"executed a {form} attention, largest difference {difference:.0e}"


def _onnxruntime() -> str:
    import onnxruntime

    return f"{onnxruntime.__version__} {_execute('decomposed')}"


def _opset_24() -> Check:
    check = _attempt("opset 24", lambda: _execute("portable"))
    if check.state == "ok":
        return check
    detail = f"only bundles exported with --attention decomposed run here; {check.detail}"
    return Check(name=check.name, state="warn", detail=detail)


def _optional(module: str, extra: str) -> Check:
    found = importlib.util.find_spec(module) is not None
    detail = "installed" if found else f"not installed (only for the extra {extra})"
    return Check(name=module, state="ok", detail=detail)


def _memory() -> Check:
    from safecode_trt.runtime.device import free_memory

    free = free_memory()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    if free is None:
        return Check(name="memory", state="ok", detail=f"unknown on {sys.platform}; {cores} cores")
    state: Literal["ok", "warn"] = "ok" if free >= ENOUGH_MEMORY else "warn"
    return Check(name="memory", state=state, detail=f"{console.size(free)} free, {cores} cores")


def _one_token(path: Path) -> str:
    from safecode_trt.runtime import Engine

    with Engine.open(path, config=RuntimeConfig()) as engine:
        reply = engine.generate("hello", sampling=SamplingParams(max_new_tokens=1))
    return f"{path} answered one token in {reply.timings.total_s * 1e3:.0f} ms"
