"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from safecode_trt import __version__

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processor, cores, threads (0: all cores) and versions, and when."""

    cpu: str
    cores: int
    threads: int
    backend: str
    onnxruntime: str | None
    python: str
    safecode_trt: str
    date: str


def this_machine(threads: int, backend: str) -> Machine:
    """The facts, without asking any library to load."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Machine(
        cpu=_cpu_model(),
        cores=cores,
        threads=threads,
        backend=backend,
        onnxruntime=_version("onnxruntime"),
        python=platform.python_version(),
        safecode_trt=__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _cpu_model() -> str:
    """/proc/cpuinfo names the model on Linux; platform.processor() is empty there as a rule."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
