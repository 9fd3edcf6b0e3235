"""safecode-trt doctor: what can this machine run? Everything is found out by doing it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from safecode_trt import __version__
from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json, no_kept_graphs
from safecode_trt.config import Backend, RuntimeConfig, SamplingParams
from safecode_trt.errors import BackendError, SafeCodeError

if TYPE_CHECKING:
    from safecode_trt.doctor.findings import Finding
    from safecode_trt.runtime.device import CudaDevice

__all__ = ["command"]

BUNDLE, INDENT = "bundle", 8


@click.command("doctor", short_help="Check what this machine can run.")
@click.argument("bundle", type=PATH, required=False)
@no_kept_graphs
@as_json
def command(bundle: Path | None, keep_graphs: bool, as_json: bool) -> None:
    """Execute a small decoder on every backend, and BUNDLE on those that work.

    Backends that are not installed, or need a GPU that is not there, are absent, and no failure.

    \b
    Example:
      safecode-trt doctor build/demo-bundle
    """
    from safecode_trt.doctor.findings import find

    gpu, trouble = _gpu()
    findings = list(find(gpu))
    if bundle:
        findings.append(_bundle(bundle, findings, gpu, keep_graphs))
    ready = _ready(findings)
    machine = {
        "python": platform.python_version(),
        "safecode_trt": __version__,
        "memory": _memory(),
        "gpu": trouble or _gpu_line(gpu),
    }
    if as_json:
        document = {**machine, "gpu": asdict(gpu) if gpu else None, "gpu_error": trouble, "ready": ready}
        console.emit_json({**document, "backends": [asdict(finding) for finding in findings]})
    else:
        for name, line in machine.items():
            click.echo(f"{name:13} {line}")
        click.echo()
        for finding in findings:
            click.echo("\n".join(_lines(finding)))
    if not ready:
        what = f"{bundle} does not run" if bundle else "no backend runs"
        raise BackendError(f"{what} on this machine; the lines above say why")


def _ready(findings: Sequence[Finding]) -> bool:
    """Whether something can run: the bundle, if one was given."""
    asked = [finding for finding in findings if finding.backend == BUNDLE] or [
        finding for finding in findings if finding.executed
    ]
    return any(finding.state in ("ok", "warn") for finding in asked)


def _lines(finding: Finding) -> list[str]:
    """A line for the state, and what follows from it below, within the width of the terminal."""
    width = min(shutil.get_terminal_size((console.PIPE_WIDTH, 24)).columns, console.PIPE_WIDTH)
    where = [finding.version, finding.device, finding.compute_capability]
    head = " ".join(filter(None, where))
    detail = console.printable(" ".join(finding.detail.split()))
    lines = [f"{finding.state:6}  {finding.backend:18}  {head}".rstrip()]
    wrap = {"width": width, "initial_indent": " " * INDENT, "subsequent_indent": " " * INDENT}
    lines += textwrap.wrap(detail, break_long_words=False, break_on_hyphens=False, **wrap)  # type: ignore[arg-type]
    return lines + ([f"{' ' * INDENT}fix: {finding.fix}"] if finding.fix else [])


def _gpu() -> tuple[CudaDevice | None, str | None]:
    from safecode_trt.runtime.device import cuda_device

    try:
        return cuda_device(), None
    except BackendError as error:
        return None, str(error)


def _gpu_line(gpu: CudaDevice | None) -> str:
    if gpu is None:
        return "none found"
    capability = f"{gpu.compute_capability[:-1]}.{gpu.compute_capability[-1]}"
    sizes = f"{console.size(gpu.free_memory)} of {console.size(gpu.total_memory)} free"
    return f"{console.printable(gpu.name)}, compute capability {capability}, {sizes}"


def _memory() -> str:
    from safecode_trt.runtime.device import free_memory

    free = free_memory()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{console.size(free) if free is not None else 'unknown'} free, {cores} cores"


def _bundle(path: Path, findings: Sequence[Finding], gpu: CudaDevice | None, keep_graphs: bool) -> Finding:
    """One token of the bundle on every backend that works here."""
    from safecode_trt.bundle import Bundle
    from safecode_trt.doctor.findings import Finding
    from safecode_trt.runtime.backends.auto import ORDER

    try:
        engines = Bundle.open(path).manifest.engines
    except SafeCodeError as error:
        return Finding(
            backend=BUNDLE, state="fail", detail=error.shown(error.field, fix=False), fix=error.fix
        )
    working = {finding.backend.split(" ")[0] for finding in findings if finding.state in ("ok", "warn")}
    if gpu and engines:
        working.add("trt")  # its engines are asked themselves, whatever became of the probe's
    said, answered = list[str](), False
    for backend in (name for name in reversed(ORDER) if name in working):
        try:
            said.append(f"{backend} answered one token in {_one_token(path, backend, keep_graphs):.0f} ms")
            answered = True
        except Exception as error:  # whatever a backend raises is what the doctor is asked about
            said.append(f"{backend}: {error}")
    detail = "; ".join(said) or "no backend works here"
    return Finding(backend=BUNDLE, state="ok" if answered else "fail", detail=detail)


def _one_token(path: Path, backend: Backend, keep_graphs: bool) -> float:
    """Milliseconds of a reply of one token, the opening of the bundle not counted."""
    from safecode_trt.engine import Engine

    config = RuntimeConfig(backend=backend, check_hashes=False, keep_graphs=keep_graphs)
    with Engine.open(path, config=config) as engine:
        start = perf_counter()
        engine.generate("hello", sampling=SamplingParams(max_new_tokens=1), mode="plain")
        return (perf_counter() - start) * 1e3
