"""Measures exports (seconds, memory) and openings of what they made: each in a process of its own.

python tools/make_random_checkpoint.py --family qwen2_vl --size 2b --shard-bytes 2000000000 --output build/random-2b
python tools/bench_export.py --model build/random-2b          # its decoder, in every precision
python tools/bench_export.py --whole build/random-2b          # `export --no-verify` to int4, then the opening

Seconds are the least of the rounds, memory is the most: the largest resident set, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from safecode_trt.bench.bench_report import machine_line
from safecode_trt.machine import this_machine
from safecode_trt.text_table import TextTable, markdown

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
PROGRAM = [sys.executable, "-c", "from safecode_trt.cli import main; main()"]
# ru_maxrss is in bytes on macOS, in KiB elsewhere.
UNIT = 1 if sys.platform == "darwin" else 1024
Row = dict[str, Any]

# The child's peak is read before and after, so that the interpreter and its imports are not counted.
DECODER_CHILD = """
import json, resource, sys, time
from pathlib import Path
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.export_config import ExportConfig
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.package import geometry
from safecode_trt.models import load_spec

model, target, precision, attention = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
unit = 1 if sys.platform == "darwin" else 1024
spec = load_spec(model)
sizes, checkpoint = geometry(spec, ExportConfig()), Checkpoint(model, spec.renames, spec.joins)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
found = write_decoder(checkpoint, spec, sizes, target, precision=precision, attention=attention)
seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "seconds": round(seconds, 1),
    "cpu_seconds": round(time.process_time(), 1),
    "interpreter_mb": round(before * unit / 1e6),
    "peak_above_mb": round((after - before) * unit / 1e6),
    "file_mb": round(sum(f.stat().st_size for f in target.parent.iterdir()) / 1e6),
    "mean_error": round(sum(how.error or 0.0 for how in found.values()) / max(len(found), 1), 4),
    "torch": "torch" in sys.modules or "transformers" in sys.modules,
}))
"""

OPEN_CHILD = """
import json, resource, sys, time
from pathlib import Path
import onnxruntime
from safecode_trt.config import RuntimeConfig
from safecode_trt.manifest import EMBEDDINGS
from safecode_trt.engine import Engine

bundle, table = Path(sys.argv[1]), Path(sys.argv[1], EMBEDDINGS).resolve()
config = RuntimeConfig(backend=sys.argv[2])
def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])  # by system calls, from the page cache too

start, cpu, read = time.perf_counter(), time.process_time(), bytes_read()
engine = Engine.open(bundle, config=config)
seconds, cpu, read = time.perf_counter() - start, time.process_time() - cpu, bytes_read() - read
resident, inside = 0, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    inside = line.endswith(str(table)) if "-" in line.split(" ")[0] else inside
    if inside and line.startswith("Rss:"):
        resident += int(line.split()[1])
anonymous = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon:"))
print(json.dumps({
    "seconds": round(seconds, 2),
    "cpu_seconds": round(cpu, 2),
    "read_mb": round(read / 1e6, 1),
    "table_mb": round(table.stat().st_size / 1e6, 1),
    "table_resident_mb": round(resident * 1024 / 1e6, 1),
    "anonymous_mb": round(int(anonymous.split()[1]) * 1024 / 1e6),
    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
}))
"""


def child(program: str, *arguments: str, cache: Path | None = None) -> Row:
    """What a program prints, run by this interpreter; `cache` takes the place of the user's cache folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)} if cache else None
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"error: measuring {arguments[0]} failed")
    result: Row = json.loads(done.stdout)
    return result


def best(rounds: Sequence[Row]) -> Row:
    """The least seconds and the most memory of rounds that are the same otherwise."""
    found = dict(rounds[0])
    for key in found:
        if "seconds" in key:
            found[key] = min(row[key] for row in rounds)
        elif key.startswith(("peak", "interpreter", "anonymous")):
            found[key] = max(row[key] for row in rounds)
    return found


def decoder_export(model: Path, precision: str, attention: str, rounds: int = 1) -> Row:
    """The decoder alone, in fresh processes; its files are deleted again."""
    measured = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=model.parent) as folder:
            target = str(Path(folder, "decoder.onnx"))
            measured.append(child(DECODER_CHILD, str(model), target, precision, attention))
    return {"checkpoint": model.name, "precision": precision, **best(measured)}


def whole_export(model: Path, output: Path, precision: str = "int4") -> Row:
    """`safecode-trt export --no-verify`, the vision encoder included."""
    command = [*PROGRAM, "export", "--model", str(model), "--output", str(output), "--no-verify"]
    start = perf_counter()
    with subprocess.Popen([*command, "--precision", precision], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: the export of {model} failed")
    return {
        "checkpoint": model.name,
        "precision": precision,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss * UNIT / 1e6),
        "bundle_mb": round(sum(f.stat().st_size for f in output.rglob("*") if f.is_file()) / 1e6),
    }


def openings(bundle: Path, *, backend: str = "ort-cpu", rounds: int = 1) -> list[Row]:
    """The first opening, and the best of those that find what the first has kept."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as cache:
        first = child(OPEN_CHILD, str(bundle), backend, cache=Path(cache))
        again = [child(OPEN_CHILD, str(bundle), backend, cache=Path(cache)) for _ in range(rounds)]
    return [
        {"bundle": bundle.name, "opening": name, **row}
        for name, row in (("first", first), ("again", best(again)))
    ]


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> TextTable:
    columns = tuple(rows[0])
    words = {True: "yes", False: "no"}
    cells = [
        tuple(words.get(x, str(x)) if isinstance(x, bool) else str(x) for x in row.values()) for row in rows
    ]
    return TextTable(
        title=title, columns=tuple(name.replace("_", " ") for name in columns), rows=tuple(cells)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", default=[], help="checkpoint: its decoder")
    parser.add_argument(
        "--whole", type=Path, action="append", default=[], help="checkpoint: all of an int4 bundle"
    )
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="bundle to open (Linux only)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="of --model; default: all")
    parser.add_argument("--attention", choices=["portable", "decomposed"], default="portable")
    parser.add_argument("--rounds", type=int, default=1, help="of --model and of openings")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    if not given.model + given.whole + given.bundle:
        parser.error("nothing to measure: give --model, --whole or --bundle")
    decoders = [
        decoder_export(model, precision, given.attention, given.rounds)
        for model in given.model
        for precision in given.precision or PRECISIONS
    ]
    exports, opened = [], []
    for model in given.whole:
        with tempfile.TemporaryDirectory(dir=model.parent) as folder:
            bundle = Path(folder, f"{model.name}-int4")
            exports.append(whole_export(model, bundle))
            opened += openings(bundle, rounds=given.rounds)
    for bundle in given.bundle:
        opened += openings(bundle, rounds=given.rounds)
    tables = [
        table(title, rows)
        for title, rows in (
            ("Export of a decoder", decoders),
            ("Export of a whole bundle, not verified", exports),
            ("Opening of a bundle", opened),
        )
        if rows
    ]
    command = shlex.join(["python", "tools/bench_export.py", *sys.argv[1:]])
    facts = [
        machine_line(this_machine(0, "ort-cpu")),
        f"`{command}`",
        "seconds are the least of the rounds, memory is the most, in 10^6 bytes",
        "resident sets count mapped files; a bundle's files are in the page cache when it is opened",
    ]
    parts = [
        "# Exports and openings at scale\n",
        "".join(f"- {fact}\n" for fact in facts),
        *map(markdown, tables),
    ]
    text = "\n".join(parts)
    print(text)
    if given.report:
        given.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
