"""Where the milliseconds of a decode step go, by operator and number of rows: ONNX Runtime's own profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bare_decoder import BareDecoder, portable_feeds
from safecode_trt.bench.workload import VISIBLE_KEYS
from safecode_trt.bundle import Bundle
from safecode_trt.manifest import DECODER
from safecode_trt.runtime.backends.host_cache import capacity_for

__all__ = ["operator_profile"]

ROWS = (1, 2, 3)
WARM_UP, STEPS = 5, 30
KERNEL = "_kernel_time"

Profile = Mapping[str, tuple[float, ...]]


def operator_profile(bundle: Bundle, *, threads: int) -> Profile:
    """Milliseconds of a step by kind of operator, for 1, 2 and 3 rows; the medians of many steps, dearest first.

    Profiling adds to every operator, so that the sum is more than an undisturbed step.
    """
    by_rows = [_profiled(bundle, rows, threads) for rows in ROWS]
    kinds = sorted({kind for found in by_rows for kind in found}, key=lambda kind: -by_rows[0].get(kind, 0.0))
    return {kind: tuple(found.get(kind, 0.0) for found in by_rows) for kind in kinds}


def _profiled(bundle: Bundle, rows: int, threads: int) -> Mapping[str, float]:
    import onnxruntime as ort

    limit = bundle.manifest.geometry.context_length
    visible = min(VISIBLE_KEYS, limit // 2)
    capacity = capacity_for(visible, limit)
    embeds = np.full((1, 1, bundle.manifest.geometry.hidden_size), 0.5, np.float32)
    one = portable_feeds(bundle, embeds, visible - 1, capacity)
    feeds = {name: np.repeat(value, rows, axis=0) for name, value in one.items()}
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")  # as the product does
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "steps")
        session = ort.InferenceSession(str(bundle.file(DECODER)), options, providers=["CPUExecutionProvider"])
        decoder = BareDecoder(session, bundle, capacity, rows=rows)
        for _ in range(WARM_UP + STEPS):
            decoder.run(feeds)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return _by_kind(events)


def _by_kind(events: list[Mapping[str, object]]) -> Mapping[str, float]:
    """Milliseconds of a step by operator: an operator's nodes stand in the profile in the order of the steps."""
    seconds: dict[str, list[float]] = {}
    for event in events:
        name, details = str(event.get("name", "")), event.get("args")
        if name.endswith(KERNEL) and isinstance(details, Mapping):
            seconds.setdefault(str(details["op_name"]), []).append(float(str(event["dur"])) / 1e3)
    found = {}
    for kind, all_steps in seconds.items():
        per_step = np.array(all_steps).reshape(WARM_UP + STEPS, -1).sum(axis=1)
        found[kind] = float(median(per_step[WARM_UP:].tolist()))
    return found
