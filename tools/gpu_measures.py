"""What gpu_sections.py measures of a bundle on a GPU: whether its numbers are right, how fast, and what is possible."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

__all__ = ["COPIED", "GPU_BACKENDS", "NO_GPU", "ROWS", "copy_bandwidth", "parity", "require_gpu", "speed"]

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 75  # the exit code of a section that has nothing to run on
GPU_BACKENDS = ("ort-cuda", "ort-tensorrt", "ort-trt-rtx", "trt")
ROWS = (1, 2, 3)
REPEATS = 5
COPIED = 1 << 30  # bytes; far beyond any cache
Row = dict[str, Any]


def parity(bundle: Path, request: str, *, tokens: int, side: int) -> Iterator[Row]:
    """Greedy replies in SafeCoDe's mode about a picture of side x side pixels, and first logits, against the CPU's.

    A token that differs is no error by itself: the logits say by how much, over the largest.
    """
    import numpy as np
    from PIL import Image

    from safecode_trt.config import RuntimeConfig, SamplingParams
    from safecode_trt.engine import Engine
    from safecode_trt.errors import BackendError
    from safecode_trt.policy import make_policy
    from safecode_trt.runtime.kv_cache import KVCache

    picture = Image.open(ROOT / "examples" / "socket.png").convert("RGB").resize((side, side))
    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)

    def answer(backend: Any) -> tuple[tuple[int, ...], Any]:
        with Engine.open(bundle, config=RuntimeConfig(backend=backend, check_hashes=False)) as engine:
            row = engine.model.builder.text_row(np.arange(24, dtype=np.int64) + 8)
            cache = KVCache(engine.model.session.allocate(1), rows=1)
            cache.require(len(row))
            feeds = engine.model.builder.feeds([row], np.array([len(row)]), cache)
            logits = engine.model.session.decode(feeds, cache.memory).logits[:, 0].copy()
            policy = make_policy("safecode-paper", engine.bundle.manifest.safecode)
            reply = engine.generate(request, image=picture, policy=policy, sampling=sampling)
            if reply.fallback_reason:
                raise BackendError(f"the reply fell back: {reply.fallback_reason}")
            return tuple(reply.token_ids), logits

    right, logits = answer("ort-cpu")
    for backend in GPU_BACKENDS:
        row: Row = {"backend": backend}
        try:
            found, others = answer(backend)
        except Exception as error:  # whatever it raises is what is asked here
            yield row | {"error": f"{type(error).__name__}: {error}"}
            continue
        same = [a == b for a, b in zip(right, found, strict=True)]
        yield row | {
            "tokens": tokens,
            "equal up to the first that differs": (same.index(False) if False in same else tokens),
            "largest difference of logits, over the largest": float(
                np.abs(others - logits).max() / np.abs(logits).max()
            ),
        }


def speed(folder: Path) -> Iterator[Row]:
    """Steps with 1, 2 and 3 rows, prefill and pictures on every GPU backend; one that fails is a row too."""
    from random_tokenizer import RANDOM_REQUEST

    limit = copy_bandwidth()
    for backend in GPU_BACKENDS:
        try:
            yield from _speed_on(folder, backend, RANDOM_REQUEST, limit)
        except Exception as error:  # see parity
            yield {"backend": backend, "error": f"{type(error).__name__}: {error}"}


def _speed_on(folder: Path, backend: Any, request: str, limit: float) -> Iterator[Row]:
    from safecode_trt.bench.timing import Case, interleaved
    from safecode_trt.bench.workload import Workload
    from safecode_trt.config import RuntimeConfig
    from safecode_trt.engine import Engine
    from safecode_trt.manifest import DECODER

    with Engine.open(folder, config=RuntimeConfig(backend=backend, check_hashes=False)) as engine:
        work, manifest = Workload(engine, request), engine.bundle.manifest
        cases: dict[str, Case] = {f"step {rows}": work.steps(rows) for rows in ROWS}
        cases |= {"prefill": work.prefill(1), "pictures 1": work.vision(1), "pictures 2": work.vision(2)}
        rounds = interleaved(cases, REPEATS)
        g = manifest.geometry
        weights = sum(f.bytes for path, f in manifest.files.items() if path.startswith(DECODER))
        position = 2 * g.num_hidden_layers * g.num_key_value_heads * g.head_dim * 2  # float16
        one = rounds.spread("step 1").median
        for rows in ROWS:
            step = rounds.spread(f"step {rows}").median
            read = weights + rows * work.capacity * position
            yield {
                "backend": backend,
                "what": f"step, {rows} rows, cache of {work.capacity}",
                "ms": step * 1e3,
                "tokens/s": 1 / step,
                "against 1 row": step / one,
                "bytes read": read,
                "limit, tokens/s": limit / read,
                "share of the limit": read / limit / step,
            }
        for name in ("prefill", "pictures 1", "pictures 2"):
            yield {"backend": backend, "what": name, "ms": rounds.spread(name).median * 1e3}


def copy_bandwidth() -> float:
    """Bytes per second that the GPU reads and writes while it copies."""
    from safecode_trt.runtime.backends.cuda_stream import CudaStream

    stream = CudaStream()
    source, target = (stream.allocate(COPIED) for _ in range(2))

    def seconds() -> float:
        start = perf_counter()
        stream.copy(target.handle, source.handle, COPIED)
        stream.synchronize()
        return perf_counter() - start

    try:
        return 2 * COPIED / min(seconds() for _ in range(20))
    finally:
        stream.close()


def require_gpu() -> Any:
    """The GPU; without one this section is over."""
    from safecode_trt.runtime.device import cuda_device

    gpu = cuda_device()
    if gpu is None:
        print("no GPU was found", file=sys.stderr)
        sys.exit(NO_GPU)
    return gpu
