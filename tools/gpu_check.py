"""Everything that needs a GPU, in one run: what works, whether the numbers are right, how fast against what could be.

    python tools/gpu_check.py                          with what is installed
    python tools/gpu_check.py --wheels FOLDER          with wheels from that folder, and no network

Writes gpu-check.json and gpu-check.md into --output-dir. Every section runs in a process of its own: one that fails,
crashes or takes too long is recorded, and the rest goes on. Without a GPU the sections say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
WHEELS = "wheels"
NO_GPU = 75  # the exit code of a section that has nothing to run on
State = Literal["done", "failed", "skipped", "no GPU"]
Row = Mapping[str, Any]
TITLES = {
    "doctor": "What works here",
    "bandwidth": "Memory bandwidth, by copying",
    "kernels": "The fused logit step over (2, 151936), in microseconds",
    "demo-bundle": "The demo bundle",
    "demo-engines": "TensorRT engines of the demo bundle, built for this GPU",
    "demo-parity": "The demo bundle: every backend against ONNX Runtime on the CPU",
    "checkpoint": "A random checkpoint",
    "fp16-bundle": "The random checkpoint in fp16",
    "fp16-speed": "fp16: speed against the bandwidth limit",
    "transformers": "transformers on the same GPU, fp16",
    "fp16-parity": "fp16: every backend against ONNX Runtime on the CPU",
    "int4-bundle": "The random checkpoint in int4",
    "int4-speed": "int4: speed against the bandwidth limit",
    "int4-parity": "int4: every backend against ONNX Runtime on the CPU",
}
# Seconds that a section takes at least; with less left it is skipped. Guesses: none was measured on a GPU.
LEAST = {
    "checkpoint": 30,
    "fp16-bundle": 40,
    "int4-bundle": 60,
    "fp16-speed": 30,
    "int4-speed": 30,
    "transformers": 30,
    "fp16-parity": 30,
    "int4-parity": 30,
}


@dataclass(kw_only=True)
class Section:
    """What became of a section; `rows` are lines of a table, all of them measured or read here."""

    name: str
    state: State = "skipped"
    seconds: float = 0.0
    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


def run_section(name: str, arguments: argparse.Namespace, left: float) -> Section:
    """Runs a section in a process of its own, until the time is over."""
    section = Section(name=name)
    if left < LEAST.get(name, 5):
        section.reason = f"{max(left, 0):.0f} s are left, and it takes {LEAST.get(name, 5)} s or more"
        return section
    output = arguments.output_dir / f".{name}.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "tools" / "gpu_sections.py"), name, "--output", str(output)]
    command += ["--work", str(arguments.output_dir), "--family", arguments.family, "--size", arguments.size]
    start = monotonic()
    try:
        done = subprocess.run(
            command, env=_environment(arguments.output_dir), capture_output=True, text=True, timeout=left
        )
    except subprocess.TimeoutExpired:
        section.state, section.reason = "failed", f"not done after {left:.0f} s, when the time was over"
    else:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == 0:
            section.state = "done"
        elif done.returncode == NO_GPU:
            section.state, section.reason = "no GPU", last
        else:
            section.state, section.reason = "failed", f"exit code {done.returncode}: {last}"
    section.seconds = round(monotonic() - start, 1)
    if output.exists():  # what was measured before a failure counts
        section.rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        output.unlink()
    return section


def _environment(output: Path) -> dict[str, str]:
    """With the wheels of this run and the checkout itself in front, and no way to the network for Hugging Face."""
    paths = [str(output / WHEELS), str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def install_wheels(folder: Path, output: Path) -> list[str]:
    """Unpacks the wheels of a folder for the sections to find, before what is installed; returns the failures."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(
            f"error: {folder} has no wheels; put the packages that are missing there, or leave --wheels out"
        )
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
    failures = []
    for wheel in wheels:  # one by one: a folder for several machines is allowed
        command = [*install, "--target", str(output / WHEELS), str(wheel)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            failures.append(f"{wheel.name}: {(done.stderr.strip().splitlines() or ['?'])[0]}")
    return failures


def markdown(report: Mapping[str, Any]) -> str:
    """The report as one page: what became of the sections, then their tables."""
    lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in report["machine"].items()), ""]
    if not any(section["state"] == "done" and section["name"] != "doctor" for section in report["sections"]):
        lines += ["Nothing was measured on a GPU in this run.", ""]
    states = [
        {"section": s["name"], "state": s["state"], "seconds": s["seconds"], "reason": s["reason"]}
        for s in report["sections"]
    ]
    lines += [*_table(states), ""]
    for section in report["sections"]:
        if section["rows"]:
            lines += [f"## {TITLES[section['name']]}", "", *_table(section["rows"]), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return lines + [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use for this run")
    parser.add_argument("--seconds", type=float, default=480, help="what the run may take (default 480)")
    parser.add_argument("--family", default="qwen2_vl", help="of the random checkpoint (default qwen2_vl)")
    parser.add_argument("--size", default="2b", help="of the random checkpoint (default 2b)")
    parser.add_argument("--only", nargs="+", choices=list(TITLES), metavar="SECTION", help=", ".join(TITLES))
    arguments = parser.parse_args()
    start = monotonic()
    arguments.output_dir = arguments.output_dir.resolve()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(arguments.output_dir / WHEELS, ignore_errors=True)
    arguments.not_installed = []
    if arguments.wheels:
        arguments.not_installed = install_wheels(arguments.wheels.resolve(), arguments.output_dir)
    sections = []
    for name in arguments.only or TITLES:
        section = run_section(name, arguments, arguments.seconds - (monotonic() - start))
        print(f"{section.name:13} {section.state:8} {section.seconds:6.1f} s  {section.reason}", flush=True)
        sections.append(section)
        _write(arguments, sections, monotonic() - start)


def _write(arguments: argparse.Namespace, sections: Sequence[Section], seconds: float) -> None:
    """After every section, so that a run that is cut off leaves what it has."""
    machine: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "checkpoint": f"random, {arguments.family} {arguments.size}",
        "seconds": round(seconds),
    }
    if arguments.not_installed:
        machine["wheels not installed"] = "; ".join(arguments.not_installed)
    report = {"machine": machine, "sections": [asdict(section) for section in sections]}
    for name, text in (("gpu-check.json", json.dumps(report, indent=2)), ("gpu-check.md", markdown(report))):
        (arguments.output_dir / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
