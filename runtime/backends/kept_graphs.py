"""Large bundles in ONNX Runtime on the CPU: what is not repacked, and what is repacked only once.

To turn the weights of DequantizeLinear and MatMul into those of its own MatMulNBits takes ONNX Runtime most of an
opening. What it has made of a decoder is kept in the user's cache folder, and the next opening maps it.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safecode_trt.bundle import Bundle
from safecode_trt.cache import cache_folder
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER

__all__ = ["LARGE", "Open", "open_decoder", "vision_entries"]

LARGE = 256 << 20
"""Bytes of weights from which on memory and the time of an opening count more than a little speed."""

GRAPH = "decoder.onnx"
_log = logging.getLogger(__name__)


class Open(Protocol):
    """Opens a graph in ONNX Runtime; `optimized` is where it writes what it has made of it."""

    def __call__(self, path: Path, *, optimized: Path | None = None) -> Any: ...


def vision_entries(bundle: Bundle) -> Mapping[str, str]:
    """Session options for the vision encoder.

    Weights that are not copied into the kernels' order stay in the mapped file, and are packed anew for every picture.
    """
    return {"session.disable_prepacking": "1"} if _weights(bundle, VISION_ENCODER) >= LARGE else {}


def open_decoder(bundle: Bundle, open_graph: Open, *, keep: bool) -> Any:
    """The bundle's decoder; with `keep`, what ONNX Runtime has made of a large quantised one before.

    What was kept and cannot be read is made again. A folder that cannot be written is done without, and so is one
    without twice the room.

    Raises:
        BackendError: ONNX Runtime does not take the graph.
    """
    path = bundle.file(DECODER)
    quantised = bundle.manifest.precision in ("int8", "int4")
    if not keep or not quantised or _weights(bundle, DECODER) < LARGE:
        return open_graph(path)
    kept = _place(bundle)
    if (kept / GRAPH).is_file():
        try:
            return open_graph(kept / GRAPH)
        except BackendError as error:
            _log.warning("a kept graph is made again: %s", error)
            shutil.rmtree(kept, ignore_errors=True)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(kept.parent).free < 2 * _weights(bundle, DECODER):
            return open_graph(path)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    except OSError as error:
        _log.warning("the decoder's optimised graph is not kept: %s", error)
        return open_graph(path)
    try:
        session = open_graph(path, optimized=temporary / GRAPH)
        if not kept.exists():  # another process may have been faster
            temporary.rename(kept)
        return session
    except (BackendError, OSError) as error:
        _log.warning("the decoder's optimised graph is not kept: %s", error)
        return open_graph(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place(bundle: Bundle) -> Path:
    import onnxruntime  # has opened the vision encoder by now

    files = bundle.manifest.files
    weights = files[_data(DECODER)]
    parts = (files[DECODER].sha256, weights.sha256, onnxruntime.__version__, platform.machine())
    return cache_folder("graphs") / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def _weights(bundle: Bundle, name: str) -> int:
    """The bytes of a graph's weights."""
    entry = bundle.manifest.files.get(_data(name))
    return entry.bytes if entry else 0


def _data(name: str) -> str:
    return f"{name}.data"
