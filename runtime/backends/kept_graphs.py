"""Large bundles in ONNX Runtime on the CPU: what is not repacked, and what is repacked only once.

To turn the weights of DequantizeLinear and MatMul into those of its own MatMulNBits takes ONNX Runtime most of an
opening. What it has made of a decoder is kept in the user's cache folder, one graph per bundle, and the next opening
maps it if nothing that it depends on has changed.
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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safecode_trt import __version__
from safecode_trt.bundle import Bundle, file_entry
from safecode_trt.cache_folder import cache_folder
from safecode_trt.errors import BackendError, BundleError, ConfigError
from safecode_trt.machine import vector_extensions
from safecode_trt.manifest import DECODER, VISION_ENCODER, FileEntry
from safecode_trt.records import loads, to_dict
from safecode_trt.runtime.backends.ort_providers import graph_options

__all__ = ["LARGE", "Open", "kept_for", "made_of", "open_decoder", "vision_entries"]

LARGE = 256 << 20
"""Bytes of weights from which on memory and the time of an opening count more than a little speed."""

GRAPH, RECORD = "decoder.onnx", "kept.json"
HASHES = ("decoder", "weights")
KEPT = 4
"""Graphs of so many bundles are kept at most, each as large as its decoder."""
ABANDONED = 24 * 60 * 60
"""Seconds after which nobody writes into a folder any more."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is known of a kept graph: the bundle's folder, all that it was made from, and its files."""

    bundle: str
    made_from: Mapping[str, str]
    files: Mapping[str, FileEntry]

    def same_bundle(self, folder: Path, made_from: Mapping[str, str]) -> bool:
        """Whether it is of the bundle in this folder, or of a copy of it that lies elsewhere."""
        same = all(self.made_from.get(part) == made_from.get(part) for part in HASHES)
        return self.bundle == str(folder.resolve()) or (bool(made_from) and same)


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

    `open_graph` uses the options of `graph_options`. What was kept is taken if its files have the sizes that they
    were written with, and with `check_hashes` the hashes, else it is made again. A folder that cannot be written is
    done without, and so is one without twice the room.

    Raises:
        BackendError: ONNX Runtime does not take the graph.
    """
    path = bundle.file(DECODER)
    quantised = bundle.manifest.precision in ("int8", "int4")
    folder = cache_folder("graphs") if keep and quantised and _weights(bundle, DECODER) >= LARGE else None
    if folder is None:
        return open_graph(path)
    made_from = _made_from(bundle)
    kept = folder / _key(made_from)
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
        temporary = _room(folder, bundle.path, made_from, 2 * _weights(bundle, DECODER))
    except OSError as error:
        _log.warning("the decoder's optimised graph is not kept: %s", error)
        temporary = None
    if temporary is None:
        return open_graph(path)
    try:
        session = _written_down(path, open_graph, temporary / GRAPH)
        try:
            _publish(temporary, kept, bundle.path, made_from)
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


def kept_for(kept: Path) -> str | None:
    """The folder of the bundle that a kept graph was made of; None where its record cannot be read."""
    record = _record(kept)
    return None if record is None else record.bundle


def made_of(folder: Path, kept: Iterable[Path]) -> list[Path]:
    """Those of the kept graphs that belong to the bundle in a folder, or to its copy; it need not be there any more."""
    try:
        made_from = _hashes(Bundle.open(folder, check_hashes=False))
    except BundleError:
        made_from = {}
    return [path for path in kept if (record := _record(path)) and record.same_bundle(folder, made_from)]


def _made_from(bundle: Bundle) -> Mapping[str, str]:
    """All that an optimised graph depends on, by name."""
    import onnxruntime  # has opened the vision encoder by now

    return {
        **_hashes(bundle),
        "onnxruntime": str(onnxruntime.__version__),
        "safecode-trt": __version__,
        "machine": platform.machine(),
        "processor": " ".join(vector_extensions()),
        **graph_options(),
    }


def _hashes(bundle: Bundle) -> Mapping[str, str]:
    files = bundle.manifest.files
    return {
        part: files[name].sha256
        for part, name in zip(HASHES, (DECODER, _data(DECODER)), strict=True)
        if name in files
    }


def _key(made_from: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def _record(kept: Path) -> _Kept | None:
    try:
        return loads(_Kept, (kept / RECORD).read_bytes(), RECORD)
    except (OSError, ConfigError):
        return None


def _sound(kept: Path, check_hashes: bool) -> bool:
    """Whether the files of a kept graph are those that were written."""
    if not kept.exists():
        return False
    record = _record(kept)
    if record is not None and GRAPH in record.files and _as_written(kept, record.files, check_hashes):
        return True
    _log.warning("a kept graph is made again: %s is not as it was written", kept)
    return False


def _as_written(kept: Path, files: Mapping[str, FileEntry], check_hashes: bool) -> bool:
    try:
        sized = all((kept / name).stat().st_size == entry.bytes for name, entry in files.items())
        return sized and (
            not check_hashes or all(file_entry(kept / name) == entry for name, entry in files.items())
        )
    except OSError:
        return False


def _room(folder: Path, bundle: Path, made_from: Mapping[str, str], needed: int) -> Path | None:
    """A new folder in `folder`, after what is used no more is deleted; None without room for so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder, bundle, made_from)
    if shutil.disk_usage(folder).free < needed:
        return None
    return Path(tempfile.mkdtemp(prefix=".", dir=folder))


def _prune(folder: Path, bundle: Path, made_from: Mapping[str, str]) -> None:
    """Deletes what interrupted openings have left, the bundle's older graphs, and all others but those used last.

    One more is to come.
    """
    aged = sorted((path.stat().st_mtime, path) for path in folder.iterdir() if path.is_dir())
    left = [path for at, path in aged if path.name.startswith(".") and at < time.time() - ABANDONED]
    graphs = [path for _, path in aged if not path.name.startswith(".")]
    records = {path: record for path in graphs if (record := _record(path)) is not None}
    older = [
        path
        for path, record in records.items()  # not one of the same key, which another process has just published
        if record.made_from != made_from and record.same_bundle(bundle, made_from)
    ]
    others = [path for path in graphs if path not in older]
    for path in (*left, *older, *others[: 1 - KEPT]):
        shutil.rmtree(path, ignore_errors=True)


def _publish(temporary: Path, kept: Path, bundle: Path, made_from: Mapping[str, str]) -> None:
    """Records the files and moves them to their place, unless another process was faster."""
    files = {path.name: file_entry(path) for path in temporary.iterdir()}
    record = _Kept(bundle=str(bundle.resolve()), made_from=made_from, files=files)
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
