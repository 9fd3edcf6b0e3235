"""Measures the decoder's export (seconds, memory) and the opening of the bundle, each in a process of its own.

python tools/make_random_checkpoint.py --family qwen2_vl --size 2b --shard-bytes 2000000000 --output build/random-2b
python tools/bench_export.py --model build/random-2b
python tools/bench_export.py --bundle build/random-2b-int4
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

# The child's peak is read before and after, so that the interpreter and its imports are not counted. Linux counts
# in KiB, macOS in bytes.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.config import ExportConfig
from safecode_trt.export.decoder import write_decoder
from safecode_trt.export.package import geometry
from safecode_trt.models import load_spec

model, target, precision, attention = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
unit = 1 if sys.platform == "darwin" else 1024
spec = load_spec(model)
sizes = geometry(spec, ExportConfig())
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
found = write_decoder(Checkpoint(model, spec.renames), spec, sizes, target, precision=precision, attention=attention)
seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "precision": precision,
    "attention": attention,
    "seconds": round(seconds, 2),
    "cpu_seconds": round(time.process_time(), 2),
    "interpreter_mb": round(before * unit / 1e6),
    "peak_above_mb": round((after - before) * unit / 1e6),
    "file_mb": round(sum(f.stat().st_size for f in target.parent.iterdir()) / 1e6),
    "mean_error": round(sum(how.error or 0.0 for how in found.values()) / max(len(found), 1), 4),
    "torch_imported": "torch" in sys.modules,
}))
"""


OPEN_CHILD = """
import json, resource, sys, time
from pathlib import Path
from safecode_trt.config import RuntimeConfig
from safecode_trt.manifest import EMBEDDINGS
from safecode_trt.runtime import Engine

bundle, table = Path(sys.argv[1]), Path(sys.argv[1], EMBEDDINGS).resolve()
import onnxruntime
start = time.perf_counter()
engine = Engine.open(bundle, config=RuntimeConfig(check_hashes=False))
seconds = time.perf_counter() - start
resident, inside = 0, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    inside = line.endswith(str(table)) if "-" in line.split(" ")[0] else inside
    if inside and line.startswith("Rss:"):
        resident += int(line.split()[1])
print(json.dumps({
    "open_seconds": round(seconds, 2),
    "table_mb": round(table.stat().st_size / 1e6),
    "table_resident_mb": round(resident * 1024 / 1e6, 1),
    "resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
}))
"""


def opened(bundle: Path) -> dict[str, Any]:
    """One opening of a bundle without hashing it (`verify` does that), and how much of the table was read."""
    done = subprocess.run([sys.executable, "-c", OPEN_CHILD, str(bundle)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {bundle} could not be opened")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(model: Path, precision: str, attention: str) -> dict[str, Any]:
    """One export in a fresh process; its files are deleted again."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "decoder.onnx"
        arguments = [sys.executable, "-c", CHILD, str(model), str(target), precision, attention]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the export of {model} in {precision} failed")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="checkpoint folder whose decoder is exported")
    what.add_argument("--bundle", type=Path, help="bundle that is opened (Linux only)")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: all")
    parser.add_argument("--attention", choices=["portable", "decomposed"], default="portable")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    results = (
        [opened(arguments.bundle)]
        if arguments.bundle
        else [
            measure(arguments.model, precision, arguments.attention)
            for precision in arguments.precision or PRECISIONS
        ]
    )
    if arguments.json:
        print(json.dumps({"machine": platform.machine(), "results": results}, indent=2))
        return
    columns = list(results[0])
    rows = [columns, *([str(result[column]) for column in columns] for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
