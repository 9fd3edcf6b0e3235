"""The sections of gpu_check.py, which runs each in a process of its own. A row of a table is one line of JSON.

python tools/gpu_sections.py doctor --output rows.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from gpu_measures import COPIED, ROWS, copy_bandwidth, parity, require_gpu, speed

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 1024
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a section is about: the folder for what is made, and the random checkpoint."""

    work: Path
    family: str
    size: str

    @property
    def checkpoint(self) -> Path:
        return self.work / f"random-{self.family}-{self.size}"

    def bundle(self, name: str) -> Path:
        """The bundle of that name; another section makes it.

        Raises:
            FileNotFoundError: it has not.
        """
        folder = self.work / f"{name}-bundle"
        if not (folder / "bundle.json").is_file():
            raise FileNotFoundError(f"there is no {folder.name}, see its section")
        return folder


def doctor(task: Task) -> Iterator[Row]:
    from safecode_trt.doctor.findings import find
    from safecode_trt.runtime.device import cuda_device

    for finding in find(cuda_device()):
        yield asdict(finding)


def bandwidth(task: Task) -> Iterator[Row]:
    yield {"copied GB/s (read and written)": copy_bandwidth() / 1e9, "bytes": COPIED}


def kernels(task: Task) -> Iterator[Row]:
    import numpy as np

    from bench_kernels import STEPS, microseconds
    from safecode_trt.ops.bindings import checked, load_driver
    from safecode_trt.ops.cuda import DeviceStep

    driver, size = load_driver(), 151_936
    for half in (False, True):
        rows = np.random.default_rng(0).normal(0, 3, (2, size)).astype(np.float16 if half else np.float32)
        with closing(DeviceStep(vocabulary=size, refusal_ids=np.arange(40))) as step:
            logits = checked(driver.cuMemAlloc(rows.nbytes), "cuMemAlloc")
            checked(driver.cuMemcpyHtoD(logits, rows.ctypes.data, rows.nbytes), "cuMemcpyHtoD")
            for name, settings in STEPS.items():
                microseconds(driver, step, int(logits), settings, half=half, repeats=50)
                times = microseconds(driver, step, int(logits), settings, half=half, repeats=1000)
                low, middle, high = np.percentile(times, [5, 50, 95])
                yield {"step": name, "logits": rows.dtype.name, "median": middle, "5 %": low, "95 %": high}
            driver.cuMemFree(logits)


def make_demo(task: Task) -> Iterator[Row]:
    yield _export(task, ROOT / "models" / "demo", "demo", "fp16")


def make_checkpoint(task: Task) -> Iterator[Row]:
    from make_random_checkpoint import write_checkpoint
    from random_tokenizer import RANDOM_SAFECODE

    start = perf_counter()
    write_checkpoint(task.checkpoint, task.family, task.size)
    (task.checkpoint / "safecode.json").write_text(json.dumps(RANDOM_SAFECODE), encoding="utf-8")
    size = sum(file.stat().st_size for file in task.checkpoint.iterdir())
    yield {"checkpoint": task.checkpoint.name, "bytes": size, "seconds": perf_counter() - start}


def make_fp16(task: Task) -> Iterator[Row]:
    yield _export(task, task.checkpoint, "fp16", "fp16")


def make_int4(task: Task) -> Iterator[Row]:
    yield _export(task, task.checkpoint, "int4", "int4")


def demo_engines(task: Task) -> Iterator[Row]:
    """What either flavour answers; TensorRT-RTX is tried on GPUs that are none of its targets too."""
    capability = require_gpu().compute_capability
    for flavour in ("tensorrt", "tensorrt-rtx"):
        build = ["build", str(task.bundle("demo")), "--flavour", flavour, "--sm", capability]
        program = [sys.executable, "-c", "from safecode_trt.cli import main; main()"]
        done = subprocess.run([*program, *build], capture_output=True, text=True)
        answer = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        yield {
            "flavour": flavour,
            "compute capability": capability,
            "built": done.returncode == 0,
            "answer": (answer or [""])[-1],
        }


def demo_parity(task: Task) -> Iterator[Row]:
    yield from parity(task.bundle("demo"), "can i pour water on it?", tokens=32, side=512)


def fp16_parity(task: Task) -> Iterator[Row]:
    yield from _random_parity(task, "fp16")


def int4_parity(task: Task) -> Iterator[Row]:
    yield from _random_parity(task, "int4")


def fp16_speed(task: Task) -> Iterator[Row]:
    yield from speed(task.bundle("fp16"))


def int4_speed(task: Task) -> Iterator[Row]:
    yield from speed(task.bundle("int4"))


def transformers_speed(task: Task) -> Iterator[Row]:
    """The steps of `generate` on a text of as many tokens as our steps see."""
    import torch
    from transformers import AutoModelForImageTextToText

    from safecode_trt.bench.workload import VISIBLE_KEYS

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} has no CUDA")
    model: Any = AutoModelForImageTextToText.from_pretrained(task.checkpoint, dtype=torch.float16).to("cuda")

    def seconds(rows: int, tokens: int) -> float:
        ids = torch.full((rows, VISIBLE_KEYS - 33), 20, device="cuda")
        torch.cuda.synchronize()
        start = perf_counter()
        mask = torch.ones_like(ids)
        model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
        torch.cuda.synchronize()
        return perf_counter() - start

    for rows in ROWS:
        seconds(rows, 65)
        step = min((seconds(rows, 65) - seconds(rows, 1)) / 64 for _ in range(3))
        yield {"rows": rows, "ms a step": step * 1e3, "tokens/s": 1 / step, "torch": torch.__version__}


def _export(task: Task, checkpoint: Path, name: str, precision: Any) -> Row:
    """Float16 activations, which every GPU backend takes; random weights have no parity to hold."""
    from safecode_trt.export import ExportConfig, export_bundle

    start = perf_counter()
    activations: Any = "fp16" if precision == "int4" else None
    config = ExportConfig(
        precision=precision,
        activations=activations,
        context_length=CONTEXT,
        verify=False,
        overwrite=True,
    )
    bundle = export_bundle(checkpoint, task.work / f"{name}-bundle", config=config)
    size = sum(file.bytes for file in bundle.manifest.files.values())
    return {"bundle": f"{name}-bundle", "bytes": size, "seconds": perf_counter() - start}


def _random_parity(task: Task, name: str) -> Iterator[Row]:
    from random_tokenizer import RANDOM_REQUEST

    yield from parity(task.bundle(name), RANDOM_REQUEST, tokens=8, side=112)  # the CPU is slow at this


SECTIONS: dict[str, Callable[[Task], Iterator[Row]]] = {
    "doctor": doctor,
    "bandwidth": bandwidth,
    "kernels": kernels,
    "demo-bundle": make_demo,
    "demo-engines": demo_engines,
    "demo-parity": demo_parity,
    "checkpoint": make_checkpoint,
    "fp16-bundle": make_fp16,
    "fp16-speed": fp16_speed,
    "transformers": transformers_speed,
    "fp16-parity": fp16_parity,
    "int4-bundle": make_int4,
    "int4-speed": int4_speed,
    "int4-parity": int4_parity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--family", default="qwen2_vl")
    parser.add_argument("--size", default="2b")
    arguments = parser.parse_args()
    if arguments.section != "doctor":
        require_gpu()  # nothing is made for a GPU that is not there
    task = Task(arguments.work, arguments.family, arguments.size)
    with arguments.output.open("w", encoding="utf-8") as output:
        for row in SECTIONS[arguments.section](task):
            output.write(json.dumps(row) + "\n")
            output.flush()


if __name__ == "__main__":
    main()
