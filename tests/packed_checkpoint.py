"""Packs codes as GPTQ and AWQ store them, from the formats' descriptions and number by number.

GPTQ: word r of a column holds rows 8 r to 8 r + 7, row 8 r + i in bits 4 i to 4 i + 3. Its zero points, and all words
of AWQ, hold eight neighbours of a row in the same way; in AWQ the bits 4 i to 4 i + 3 belong to neighbour AWQ[i].
Version 1 of GPTQ stores zero points less one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """A format with its settings; `config` is what config.json says of it."""

    method: str = "gptq"
    group_size: int = 32
    symmetric: bool = False
    version: int = 1
    tables: bool = True

    @property
    def config(self) -> dict[str, Any]:
        common = {"quant_method": self.method, "bits": 4, "group_size": self.group_size}
        if self.method == "awq":
            return common | {"version": "gemm", "zero_point": not self.symmetric}
        form = "gptq" if self.version == 1 else "gptq_v2"
        return common | {"desc_act": False, "sym": self.symmetric, "checkpoint_format": form}


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Codes (K, N) and zero points (groups, N) in 0..15, scales (groups, N), and the group of each input."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """The weight (N, K) in float32."""
        scales = self.scales.astype(np.float32)
        restored = np.empty(self.codes.shape, np.float32)
        for row, group in enumerate(self.groups):
            restored[row] = (self.codes[row] - self.zeros[group]) * scales[group]
        return np.ascontiguousarray(restored.T)


def draw(outputs: int, inputs: int, packing: Packing, seed: int) -> Codes:
    """Codes of about the distribution of a random layer."""
    generator = np.random.Generator(np.random.PCG64(seed))
    size = inputs if packing.group_size == -1 else packing.group_size
    groups = -(-inputs // size)
    lowest, highest = (8, 9) if packing.symmetric else (0, 16)
    zeros = np.clip(np.rint(generator.normal(8, 2, (groups, outputs))), lowest, highest - 1).astype(np.int64)
    return Codes(
        codes=np.clip(np.rint(generator.normal(8, 3, (inputs, outputs))), 0, 15).astype(np.int64),
        zeros=zeros,
        scales=(generator.uniform(0.2, 0.4, zeros.shape) * inputs**-0.5).astype(np.float16),
        groups=np.arange(inputs) // size,
    )


def pack(codes: Codes, packing: Packing) -> dict[str, np.ndarray]:
    """The tensors of a layer, by the last part of their names."""
    if packing.method == "awq":
        return {
            "qweight": _pack_rows(codes.codes, AWQ),
            "qzeros": _pack_rows(codes.zeros, AWQ),
            "scales": codes.scales,
        }
    stored = (codes.zeros - 1) % 16 if packing.version == 1 else codes.zeros
    tensors = {
        "qweight": np.ascontiguousarray(_pack_rows(codes.codes.T, range(8)).T),
        "qzeros": _pack_rows(stored, range(8)),
        "scales": codes.scales,
    }
    return tensors | ({"g_idx": codes.groups.astype(np.int32)} if packing.tables else {})


def _pack_rows(codes: np.ndarray, order: Any) -> np.ndarray:
    words = [
        [
            sum(int(row[start + place]) << (4 * i) for i, place in enumerate(order))
            for start in range(0, len(row), 8)
        ]
        for row in codes
    ]
    return np.array(words, np.int64).astype(np.uint32).view(np.int32).reshape(len(codes), -1)


def write_packed(source: Path, packed: Path, floats: Path, packing: Packing, *, keep: str = "-") -> None:
    """Replaces the decoder's layers of a float32 checkpoint by drawn ones: packed, and the same in float32.

    Names that hold `keep` stay in floating point in both.
    """
    tensors = load_file(source / "model.safetensors")
    words, plain = dict(tensors), dict(tensors)
    for seed, (name, tensor) in enumerate(sorted(tensors.items())):
        if ".text_model.layers." in name and tensor.ndim == 2 and keep not in name:
            outputs, inputs = tensor.shape
            codes = draw(outputs, inputs, packing, seed)
            plain[name] = codes.weight
            del words[name]
            stem = name.removesuffix("weight")
            words |= {stem + part: value for part, value in pack(codes, packing).items()}
    for folder, found in ((packed, words), (floats, plain)):
        shutil.copytree(source, folder)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": packing.config}))
