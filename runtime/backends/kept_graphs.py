"""Large bundles in ONNX Runtime on the CPU: what is not repacked, and what is repacked only once.

To turn the weights of DequantizeLinear and MatMul into those of its own MatMulNBits takes ONNX Runtime most of an
opening. What it has made of a decoder is kept in the user's cache folder, and the next opening maps it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safecode_trt.bundle import Bundle, file_entry
from safecode_trt.cache_folder import cache_folder
from safecode_trt.errors import BackendError, ConfigError
from safecode_trt.manifest import DECODER, VISION_ENCODER, FileEntry
from safecode_trt.records import loads, to_dict

__all__ = ["LARGE", "Open", "open_decoder", "vision_entries"]

LARGE = 256 << 20
"""Bytes of weights from which on memory and the time of an opening count more than a little speed."""

GRAPH, RECORD = "decoder.onnx", "kept.json"
KEPT = 4
"""So many graphs are kept at most, each as large as its decoder."""
ABANDONED = 24 * 60 * 60
"""Seconds after which nobody writes into a folder any more."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What belongs to a kept graph."""

    files: Mapping[str, FileEntry]


class Open(Protocol):
    """Opens a graph in ONNX Runtime; `optimized` is where it writes what it has made of it."""

    def __call__(self, path: Path, *, optimized: Path | None = None) -> Any: ...


def vision_entries(bundle: Bundle) -> Mapping[str, str]:
    """Session options for the vision encoder.

    Weights that are not copied into the kernels' order stay in the mapped file, and are packed anew for every picture.
    """
    return {"session.disable_prepacking": "1"} if _weights(bundle, VISION_ENCODER) >= LARGE else {}


def open_decoder(bundle: Bundle, open_graph: Open, *, keep: bool, check_hashes: bool = False) -> Any:
    """The bundle's decoder; with `keep`, what ONNX Runtime has made of a large quantised one before.

    What was kept is taken if its files have the sizes that they were written with, and with `check_hashes` the
    hashes, else it is made again. A folder that cannot be written is done without, and so is one without twice the
    room.

    Raises:
        BackendError: ONNX Runtime does not take the graph.
    """
    path = bundle.file(DECODER)
    quantised = bundle.manifest.precision in ("int8", "int4")
    kept = _place(bundle) if keep and quantised and _weights(bundle, DECODER) >= LARGE else None
    if kept is None:
        return open_graph(path)
    if _sound(kept, check_hashes):
        try:
            session = open_graph(kept / GRAPH)
        except BackendError as error:  # of the machine's, such as its memory: the files are sound
            _log.warning("a kept graph is not used: %s", error)
            return open_graph(path)
        with suppress(OSError):
            os.utime(kept)
        return session
    shutil.rmtree(kept, ignore_errors=True)
    try:
        temporary = _room(kept, 2 * _weights(bundle, DECODER))
    except OSError as error:
        _log.warning("the decoder's optimised graph is not kept: %s", error)
        temporary = None
    if temporary is None:
        return open_graph(path)
    try:
        session = _written_down(path, open_graph, temporary / GRAPH)
        try:
            _publish(temporary, kept)
        except OSError as error:
            _log.warning("the decoder's optimised graph is not kept: %s", error)
        return session
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _written_down(path: Path, open_graph: Open, optimized: Path) -> Any:
    """The graph with what is made of it written down, or without where that fails, as on a disk that gets full."""
    try:
        return open_graph(path, optimized=optimized)
    except BackendError as error:
        _log.warning("the decoder's optimised graph is not kept: %s", error)
    return open_graph(path)


def _place(bundle: Bundle) -> Path | None:
    import onnxruntime  # has opened the vision encoder by now

    if (folder := cache_folder("graphs")) is None:
        return None
    files = bundle.manifest.files
    weights = files[_data(DECODER)]
    parts = (files[DECODER].sha256, weights.sha256, onnxruntime.__version__, platform.machine())
    return folder / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def _sound(kept: Path, check_hashes: bool) -> bool:
    """Whether the files of a kept graph are those that were written."""
    try:
        files = loads(_Kept, (kept / RECORD).read_bytes(), RECORD).files
        sized = all((kept / name).stat().st_size == entry.bytes for name, entry in files.items())
        if sized and (not check_hashes or all(file_entry(kept / name) == files[name] for name in files)):
            return GRAPH in files
    except (OSError, ConfigError):
        if not kept.exists():
            return False
    _log.warning("a kept graph is made again: %s is not as it was written", kept)
    return False


def _room(kept: Path, needed: int) -> Path | None:
    """A new folder beside `kept`, after what is used no more is deleted; None without room for so many bytes."""
    folder = kept.parent
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder)
    if shutil.disk_usage(folder).free < needed:
        return None
    return Path(tempfile.mkdtemp(prefix=".", dir=folder))


def _prune(folder: Path) -> None:
    """Deletes what interrupted openings have left, and all graphs but those used last, of which one more is to come."""
    aged = sorted((path.stat().st_mtime, path) for path in folder.iterdir() if path.is_dir())
    graphs = [path for _, path in aged if not path.name.startswith(".")]
    left = [path for at, path in aged if path.name.startswith(".") and at < time.time() - ABANDONED]
    for path in (*left, *graphs[: 1 - KEPT]):
        shutil.rmtree(path, ignore_errors=True)


def _publish(temporary: Path, kept: Path) -> None:
    """Records the files and moves them to their place, unless another process was faster."""
    record = _Kept(files={path.name: file_entry(path) for path in temporary.iterdir()})
    (temporary / RECORD).write_text(json.dumps(to_dict(record)), encoding="utf-8")
    for path in temporary.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    try:
        temporary.rename(kept)
    except OSError:
        if not _sound(kept, check_hashes=False):
            raise


def _weights(bundle: Bundle, name: str) -> int:
    """The bytes of a graph's weights."""
    entry = bundle.manifest.files.get(_data(name))
    return entry.bytes if entry else 0


def _data(name: str) -> str:
    return f"{name}.data"
