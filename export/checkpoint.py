"""A checkpoint's weights, one tensor at a time: a single safetensors file or several with an index.

Knows names and shapes, and nothing of what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safecode_trt.bundle import file_entry
from safecode_trt.errors import CheckpointError
from safecode_trt.models.spec import read_json
from safecode_trt.tensors import MappedTensor, as_float32, map_tensors

__all__ = ["Checkpoint", "conversion_command", "is_pickle", "read_index"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ROWS = 4096
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


class Checkpoint:
    """The tensors of a checkpoint folder by name; the files are mapped, not read.

    A name that begins with the first of a pair of `renames` is known by the second instead; the first pair that
    fits counts. `joins` are names for several tensors, one after the other on axis 0.

    Raises:
        CheckpointError: the folder has no safetensors weights, or a file of the index is missing or broken.
    """

    def __init__(
        self,
        folder: Path,
        renames: Sequence[tuple[str, str]] = (),
        joins: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        self.folder = folder
        self._joins = dict(joins)
        self._files, names = _weight_files(folder)
        found: dict[str, MappedTensor] = {}
        for path in self._files:
            found.update(map_tensors(path))
        for name, file in names.items():
            if name not in found:
                raise CheckpointError(f"{folder / INDEX} places {name} in {file}, which does not have it")
        self._tensors = {_renamed(name, renames): tensor for name, tensor in found.items()}

    def __contains__(self, name: str) -> bool:
        return all(part in self._tensors for part in self._joins.get(name, (name,)))

    def mapped(self, name: str, shape: tuple[int, ...]) -> MappedTensor:
        """A tensor as it lies in the file; a joined one is read.

        Raises:
            CheckpointError: the checkpoint has no such tensor, or its shape is not the one that
                config.json promises.
        """
        tensor = self._joined(name) if name in self._joins else self._found(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.folder}: tensor {name} has shape {list(tensor.shape)}, "
                f"but config.json makes it {list(shape)}"
            )
        return tensor

    def _found(self, name: str) -> MappedTensor:
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.folder}: the weights have no tensor {name}; is the checkpoint complete?"
            )
        return self._tensors[name]

    def _joined(self, name: str) -> MappedTensor:
        """The parts of a joined tensor in one, in memory."""
        parts = [self._found(part) for part in self._joins[name]]
        if len({(part.dtype, part.shape[1:]) for part in parts}) > 1:
            found = ", ".join(
                f"{part} {x.dtype} {list(x.shape)}" for part, x in zip(self._joins[name], parts, strict=True)
            )
            raise CheckpointError(f"{self.folder}: expected tensors that fit one after another, got {found}")
        whole = MappedTensor(name, parts[0].dtype, np.concatenate([part.data for part in parts]))
        for part in parts:
            _release(part)
        return whole

    def get(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A tensor in float32, checked as by `mapped` and for values that are not finite."""
        tensor = self.mapped(name, shape)
        values = tensor.float32()
        _release(tensor)
        self._require_finite(name, values)
        return values

    def slabs(self, name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        """A tensor as by `get`, some rows at a time: the largest ones would be most of an export's memory."""
        tensor = self.mapped(name, shape)
        for start in range(0, shape[0], ROWS):
            values = as_float32(tensor.data[start : start + ROWS], tensor.dtype)
            _release(tensor)
            self._require_finite(name, values)
            yield values

    def _require_finite(self, name: str, values: NDArray[np.float32]) -> None:
        # A NaN or an infinity anywhere makes the sum one too, and a sum is one pass without a copy.
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise CheckpointError(f"{self.folder}: tensor {name} has values that are not finite")

    def integers(self, name: str, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """A tensor of 32-bit integers, checked as by `mapped`."""
        tensor = self.mapped(name, shape)
        if tensor.dtype != "I32":
            raise CheckpointError(f"{self.folder}: tensor {name} has type {tensor.dtype}; expected I32")
        values: NDArray[np.int32] = np.array(tensor.data)
        _release(tensor)
        return values

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the tensors that begin with `prefix`."""
        return (name for name in self._tensors if name.startswith(prefix))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that the checkpoint has."""
        return self._tensors[name].shape

    def sha256(self, settings: Sequence[str]) -> str:
        """One hash for the checkpoint: of the names and hashes of its files of `settings` and of weights."""
        digest = hashlib.sha256()
        for path in (*(self.folder / name for name in settings), *self._files):
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name} {file_entry(path).sha256}\n".encode())
        return digest.hexdigest()


def _renamed(name: str, renames: Sequence[tuple[str, str]]) -> str:
    for old, new in renames:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _release(tensor: MappedTensor) -> None:
    """Gives the pages of the mapped file back; otherwise the whole checkpoint would stay in memory."""
    mapping = getattr(tensor.data, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, and which tensor the index places in which."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if not (folder / INDEX).is_file():
        message = (
            f"{folder} has neither {SINGLE} nor {INDEX}; only safetensors weights are read, never pickles"
        )
        if any(is_pickle(path.name) for path in folder.iterdir()):
            message += f"; to convert them, run: {conversion_command(str(folder))}"
        raise CheckpointError(message)
    names = read_index(folder / INDEX)
    files = [folder / file for file in sorted(set(names.values()))]
    for path in files:
        if path.parent != folder:
            raise CheckpointError(f"{folder / INDEX} names {path}, which is outside of the checkpoint folder")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {INDEX} places tensors in it")
    return files, names


def read_index(path: Path) -> dict[str, str]:
    """Which tensor lies in which file, as an index of several safetensors files has it.

    Raises:
        CheckpointError: it is no such index.
    """
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names")
    return names


def is_pickle(file: str) -> bool:
    """Whether a file is named as PyTorch's own weights are, which run code when they are loaded."""
    return file.endswith(PICKLES)


def conversion_command(model: str) -> str:
    """The command that writes a checkpoint with pickled weights again, with safetensors: a folder or a hub's name."""
    target = f"{Path(model).name}-safetensors"
    code = (
        "from transformers import AutoModelForImageTextToText as Model, AutoProcessor as Processor; "
        f"source, target = {json.dumps(model)}, {json.dumps(target)}; "
        "[kind.from_pretrained(source).save_pretrained(target) for kind in (Model, Processor)]"
    )
    return f"python -c {shlex.quote(code)}"
