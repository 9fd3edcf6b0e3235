"""Measures the fused step of steered decoding on a GPU: two rows of logits of a large vocabulary.

python tools/bench_kernels.py
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from statistics import median
from typing import Any

import numpy as np

from safecode_trt.config import SamplingParams
from safecode_trt.errors import BackendError
from safecode_trt.ops.bindings import checked, load_driver
from safecode_trt.ops.cuda import DeviceStep
from safecode_trt.ops.fused import FusedSettings

STEPS = {
    "steered, greedy": FusedSettings(form="difference", alpha=0.3, shift_top_k=20, amount=1.0),
    "steered, plausible tokens": FusedSettings(form="vcd", alpha=0.5, beta=0.1, shift_top_k=20, amount=1.0),
    "steered, sampled": FusedSettings(
        form="difference",
        alpha=0.3,
        shift_top_k=20,
        amount=1.0,
        sampling=SamplingParams(temperature=0.8, top_p=0.9),
    ),
    "plain, greedy": FusedSettings(),
}


def microseconds(
    driver: Any, step: DeviceStep, logits: int, settings: FusedSettings, *, half: bool, repeats: int
) -> list[float]:
    """The time of each step between two events on the device, the two launches with the gap between them."""
    events = [checked(driver.cuEventCreate(0), "cuEventCreate") for _ in range(2)]
    rows = 2 if settings.form is not None else 1
    elapsed = []
    for _ in range(repeats):
        checked(driver.cuEventRecord(events[0], 0), "cuEventRecord")
        step.launch(logits, rows=rows, half=half, settings=settings, uniform=0.5, stream=0)
        checked(driver.cuEventRecord(events[1], 0), "cuEventRecord")
        checked(driver.cuEventSynchronize(events[1]), "cuEventSynchronize")
        elapsed.append(1000 * checked(driver.cuEventElapsedTime(*events), "cuEventElapsedTime"))
    for event in events:
        driver.cuEventDestroy(event)
    return elapsed


def measure(size: int, *, half: bool, repeats: int, device: int) -> None:
    """Prints one line for each kind of step.

    Raises:
        BackendError: there is no GPU to use.
    """
    driver = load_driver()
    rows = np.random.default_rng(0).normal(0, 3, (2, size)).astype(np.float16 if half else np.float32)
    with closing(DeviceStep(vocabulary=size, refusal_ids=np.arange(40), device=device)) as step:
        logits = checked(driver.cuMemAlloc(rows.nbytes), "cuMemAlloc")
        checked(driver.cuMemcpyHtoD(logits, rows.ctypes.data, rows.nbytes), "cuMemcpyHtoD")
        print(f"microseconds of a step over (2, {size}) in {rows.dtype.name}: median, 5 % and 95 %")
        for name, settings in STEPS.items():
            microseconds(driver, step, int(logits), settings, half=half, repeats=50)
            times = microseconds(driver, step, int(logits), settings, half=half, repeats=repeats)
            low, high = np.percentile(times, [5, 95])
            print(f"{name:26} {median(times):8.1f} {low:8.1f} {high:8.1f}")
        driver.cuMemFree(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--half", action="store_true", help="logits in float16")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--device", type=int, default=0)
    arguments = parser.parse_args()
    try:
        measure(arguments.vocabulary, half=arguments.half, repeats=arguments.repeats, device=arguments.device)
    except BackendError as error:
        sys.exit(f"nothing was measured, for there is no GPU to use: {error}")


if __name__ == "__main__":
    main()
