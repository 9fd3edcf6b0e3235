"""What a whole process costs: importing the runtime, the first token from a cold start, memory. Linux and macOS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from safecode_trt.bench.timing import Spread
from safecode_trt.records import loads, to_dict

__all__ = ["ProcessFigures", "process_figures"]

PROGRAM = [sys.executable, "-c", "from safecode_trt.cli import main; main()"]
IMPORT = """
from time import perf_counter
import numpy, onnxruntime
start = perf_counter()
import safecode_trt.runtime
print(perf_counter() - start)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    """Seconds and megabytes (10^6 bytes) of processes of their own.

    `first_token_s` is from the start of `safecode-trt run` to the first bytes of its answer, with a picture and
    SafeCoDe; `demo_mb` the largest resident memory of `safecode-trt demo`.
    """

    import_s: Spread
    first_token_s: Spread
    run_mb: float
    demo_mb: float


def process_figures(bundle: Path, picture: Path, request: str, *, repeats: int) -> ProcessFigures:
    """Starts every program once to fill the file cache, then `repeats` times; the demo once.

    From a process of its own: a program is charged with the memory that its parent had when it forked.
    """
    command = [sys.executable, __file__, str(bundle), str(picture), request, str(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return loads(ProcessFigures, done.stdout, "process_figures.py")


def _measured(bundle: Path, picture: Path, request: str, repeats: int) -> ProcessFigures:
    imports = [_import_seconds() for _ in range(repeats + 1)][1:]
    command = [*PROGRAM, "run", str(bundle), request, "--image", str(picture)]
    runs = [_first_bytes(command) for _ in range(repeats + 1)][1:]
    with TemporaryDirectory() as folder:
        demo = _first_bytes([*PROGRAM, "demo", str(bundle), "--report", str(Path(folder, "report.html"))])
    return ProcessFigures(
        import_s=Spread.of(tuple(imports)),
        first_token_s=Spread.of(tuple(seconds for seconds, _ in runs)),
        run_mb=median(megabytes for _, megabytes in runs),
        demo_mb=demo[1],
    )


def _import_seconds() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _first_bytes(command: Sequence[str]) -> tuple[float, float]:
    """Seconds until the program wrote anything to stdout, and its largest resident memory in MB."""
    start = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdout is None:
            raise RuntimeError("the program has no stdout")
        os.read(process.stdout.fileno(), 1)
        seconds = perf_counter() - start
        while os.read(process.stdout.fileno(), 1 << 16):
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kB here
    return seconds, usage.ru_maxrss * unit / 1e6


if __name__ == "__main__":
    bundle, picture, request, repeats = sys.argv[1:]
    figures = _measured(Path(bundle), Path(picture), request, int(repeats))
    print(json.dumps(to_dict(figures)))
