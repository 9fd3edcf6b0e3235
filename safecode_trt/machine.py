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

__all__ = ["Machine", "this_machine", "vector_extensions"]

VECTOR = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "fphp", "i8mm", "sme", "sse", "ssse", "sve")


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


def vector_extensions() -> tuple[str, ...]:
    """The processor's vector instructions, by Linux's names; elsewhere what Python says of the processor."""
    flags = (_cpu_info("flags") or _cpu_info("Features")).split()
    found = sorted({flag for flag in flags if flag.startswith(VECTOR)})
    return tuple(found) or (platform.processor() or platform.machine(),)


def _cpu_model() -> str:
    """/proc/cpuinfo names the model on Linux; platform.processor() is empty there as a rule."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip().lower() == field.lower()), "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
