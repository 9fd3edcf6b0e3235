"""Checkpoints whose decoder GPTQ or AWQ has quantised to four bits: the same codes in our layout, nothing rounded.

Eight codes share a 32-bit word, the first in its lowest bits. GPTQ packs the weight's words along the inputs, AWQ
along the outputs and in an order of its own; the zero points are packed along the outputs in both.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import INDEX, Checkpoint
from safecode_trt.export.embeddings import write_tensors
from safecode_trt.export.quantize import Quantized, dequantize
from safecode_trt.manifest import Quantization
from safecode_trt.models.spec import read_json

__all__ = ["Prequantized", "float_checkpoint"]

PACKED = 8
# Which of a word's eight codes belongs to the first output of AWQ's, to the second, ...
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# A scale may be repeated without changing a weight, so groups that are longer or no power of two become blocks.
LARGEST_BLOCK = 128
# What config.json's checkpoint_format (GPTQ) or version (AWQ) may say, and what is stored less than the zero point.
GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
AWQ_VERSIONS = ("gemm",)


@dataclass(frozen=True, slots=True)
class Prequantized:
    """The quantised weights of a checkpoint; a name is in it if it stands for codes rather than for floats."""

    checkpoint: Checkpoint
    method: Literal["gptq", "awq"]
    group_size: int
    offset: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Prequantized | None:
        """The quantised weights by config.json's quantization_config; None where there is none.

        Raises:
            CheckpointError: they were quantised in a way that is not read.
        """
        config = read_json(checkpoint.folder / "config.json")
        found = config.get("quantization_config") or (config.get("text_config") or {}).get(
            "quantization_config"
        )
        if not found:
            return None
        where = f"{checkpoint.folder}: quantization_config"
        method, bits = found.get("quant_method"), found.get("bits", found.get("w_bit"))
        if method not in ("gptq", "awq"):
            raise CheckpointError(f"{where} has quant_method {method!r}; expected 'gptq' or 'awq'")
        if bits != 4:
            raise CheckpointError(
                f"{where} has {bits!r} bits; only 4 are read",
                fix="export the original weights",
            )
        key, known = (
            ("checkpoint_format", [*GPTQ_FORMATS]) if method == "gptq" else ("version", [*AWQ_VERSIONS])
        )
        form = str(found.get(key) or known[0]).lower()
        if form not in known:
            raise CheckpointError(f"{where} has {key} {form!r}; expected {' or '.join(map(repr, known))}")
        size = found.get("group_size", found.get("q_group_size"))
        if type(size) is not int or (size < 1 and size != -1):
            raise CheckpointError(f"{where} has group_size {size!r}; expected a positive number or -1")
        return cls(checkpoint, method, size, GPTQ_FORMATS[form] if method == "gptq" else 0)

    def __contains__(self, name: str) -> bool:
        return _tensor(name, "qweight") in self.checkpoint

    def block_size(self, inputs: int) -> int:
        """How many inputs share a scale in our layout: the group, or the largest power of two that fills groups."""
        shared = math.gcd(inputs, self._group(inputs))
        return min(shared & -shared, LARGEST_BLOCK)

    def read(self, name: str, shape: tuple[int, int]) -> Quantized:
        """The codes of a weight (N, K), named as if it were in floating point.

        Raises:
            CheckpointError: a tensor is missing, has another shape or type, or the groups mix inputs.
        """
        outputs, inputs = shape
        if outputs % PACKED or inputs % PACKED:
            raise CheckpointError(f"{name} has shape {[*shape]}; {self.method} packs multiples of {PACKED}")
        groups = -(-inputs // self._group(inputs))
        self._check_order(name, inputs)
        if self.method == "gptq":
            words = self.checkpoint.integers(_tensor(name, "qweight"), (inputs // PACKED, outputs))
            codes = _codes(words).swapaxes(1, 2).reshape(inputs, outputs)
        else:
            words = self.checkpoint.integers(_tensor(name, "qweight"), (inputs, outputs // PACKED))
            codes = _codes(words)[..., AWQ_PLACES].reshape(inputs, outputs)
        words = self.checkpoint.integers(_tensor(name, "qzeros"), (groups, outputs // PACKED))
        zeros = _codes(words) if self.method == "gptq" else _codes(words)[..., AWQ_PLACES]
        zeros = (zeros.reshape(groups, outputs) + np.uint8(self.offset)) & np.uint8(15)
        scales = self.checkpoint.get(_tensor(name, "scales"), (groups, outputs))
        block = self.block_size(inputs)
        symmetric = bool((zeros == 8).all())
        return Quantized(
            values=_signed(codes),
            scales=self._by_block(scales, inputs, block),
            zero_points=None if symmetric else self._by_block(_signed(zeros), inputs, block),
            how=Quantization(bits=4, block_size=block, symmetric=symmetric, method=self.method),
        )

    def _group(self, inputs: int) -> int:
        return inputs if self.group_size == -1 else self.group_size

    def _by_block(self, values: NDArray[Any], inputs: int, block: int) -> NDArray[Any]:
        """A row for every block from a row for every group; the last group may be shorter."""
        return np.repeat(values, self._group(inputs) // block, axis=0)[: inputs // block]

    def _check_order(self, name: str, inputs: int) -> None:
        """Holds GPTQ's table of each input's group against groups of neighbours."""
        index = _tensor(name, "g_idx")
        if self.method == "gptq" and index in self.checkpoint:
            found = self.checkpoint.integers(index, (inputs,))
            if not np.array_equal(found, np.arange(inputs) // self._group(inputs)):
                raise CheckpointError(
                    f"{index} puts inputs into groups out of order; only groups in order are read",
                    fix="quantise with desc_act=false or static_groups=true",
                )


@contextmanager
def float_checkpoint(folder: Path, scratch: Path | None = None) -> Iterator[Path]:
    """The checkpoint with every weight in floating point: the folder itself, or a temporary copy.

    The copy is made in the folder `scratch`, by default the system's for temporary files.

    Raises:
        CheckpointError: the weights were quantised in a way that is not read, or there is no room for the copy.
    """
    checkpoint = Checkpoint(folder)
    packed = Prequantized.of(checkpoint)
    if packed is None:
        yield folder
        return
    place = scratch or Path(tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            shapes = _float_shapes(checkpoint, packed)
            _require_room(packed, shapes, place)
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".floats-", dir=place)))
            _write_floats(packed, shapes, copy)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: to compare it with transformers, its weights are written in float32, and {place} cannot "
                f"take them: {error.strerror or error}",
                fix="make room there, or pass --no-verify",
            ) from error
        yield copy


def _float_shapes(checkpoint: Checkpoint, packed: Prequantized) -> Mapping[str, tuple[int, ...]]:
    """The weights of the floating point copy with their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in checkpoint.names(""):
        stem, _, part = name.rpartition(".")
        shape = checkpoint.shape(name)
        if part == "qweight":
            rows, columns = shape
            gptq = packed.method == "gptq"
            shapes[f"{stem}.weight"] = (columns, rows * PACKED) if gptq else (columns * PACKED, rows)
        elif f"{stem}.qweight" not in checkpoint or part not in ("qzeros", "scales", "g_idx"):
            shapes[name] = shape
    return shapes


def _require_room(packed: Prequantized, shapes: Mapping[str, tuple[int, ...]], place: Path) -> None:
    checkpoint = packed.checkpoint
    needed = sum(
        4 * math.prod(shape) if name in packed else checkpoint.mapped(name, shape).data.nbytes
        for name, shape in shapes.items()
    )
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"{checkpoint.folder}: to compare it with transformers, its weights are written in float32, which takes "
            f"{needed / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free",
            fix="make room there, or pass --no-verify",
        )


def _write_floats(packed: Prequantized, shapes: Mapping[str, tuple[int, ...]], target: Path) -> None:
    """Writes config.json and the weights, one tensor at a time and in a file of its own."""
    checkpoint = packed.checkpoint
    config = read_json(checkpoint.folder / "config.json")
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    files = {name: f"{number:06}.safetensors" for number, name in enumerate(shapes)}
    for name, shape in shapes.items():
        if name in packed:
            outputs, inputs = shape
            values = dequantize(packed.read(name, (outputs, inputs)))
            write_tensors(target / files[name], {name: (values, "F32")})
        else:
            tensor = checkpoint.mapped(name, shape)
            write_tensors(target / files[name], {name: (tensor.data, tensor.dtype)})
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")


def _tensor(name: str, part: str) -> str:
    """The tensor next to `qweight` that has this part of a weight."""
    return f"{name.removesuffix('weight')}{part}"


def _codes(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Words (R, W) to their codes 0..15 (R, W, 8), the lowest bits first."""
    octets = words.astype("<i4", copy=False).view(np.uint8).reshape(*words.shape, 4)
    codes = np.empty((*words.shape, PACKED), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = octets & np.uint8(15), octets >> np.uint8(4)
    return codes


def _signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes 0..15 as -8..7."""
    return codes.astype(np.int8) - np.int8(8)
