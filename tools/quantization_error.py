"""Compares the ways to quantise a decoder's weights by their squared error over the weights' own squares.

python tools/quantization_error.py --model models/demo

Measured on the checkpoint's matrices, and on drawn ones with heavy tails (Student's t with 5 degrees of freedom) and
outputs of different sizes, as large models have them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import SafeCodeError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.quantize import dequantize, quantize
from safecode_trt.manifest import Quantization
from safecode_trt.models import load_spec

Array = NDArray[np.float32]
INPUTS, OUTPUTS, DRAWN = 1024, 512, 4


def ways() -> Iterator[Quantization]:
    """Every combination that an export offers."""
    for bits, sizes in ((4, (32, 64, 128)), (8, (32, None))):
        for size in sizes:
            plain = Quantization(bits=4 if bits == 4 else 8, block_size=size)
            for symmetric in (True, False):
                yield replace(plain, symmetric=symmetric)
                if bits == 4:
                    yield replace(plain, symmetric=symmetric, method="scale-search")


def trained(model: Path) -> Iterator[Array]:
    """The matrices of the checkpoint's decoder layers."""
    checkpoint, prefix = Checkpoint(model), load_spec(model).weights.layer.partition("{i}")[0]
    for name in checkpoint.names(prefix):
        shape = checkpoint.shape(name)
        if len(shape) == 2:
            yield checkpoint.get(name, shape)


def drawn() -> Iterator[Array]:
    """Heavy-tailed matrices whose outputs differ in size."""
    generator = np.random.Generator(np.random.PCG64(0))
    for _ in range(DRAWN):
        weight = generator.standard_t(5, (OUTPUTS, INPUTS))
        yield (weight * generator.lognormal(-4, 0.5, (OUTPUTS, 1))).astype(np.float32)


def error(weights: Iterable[Array], how: Quantization) -> float:
    """The squared error over the squares, of all matrices together."""
    lost = total = 0.0
    for weight in weights:
        lost += float(np.square(dequantize(quantize(weight, how)) - weight, dtype=np.float64).sum())
        total += float(np.square(weight, dtype=np.float64).sum())
    return lost / total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    model = parser.parse_args().model
    sources: dict[str, Callable[[], Iterator[Array]]] = {"checkpoint": lambda: trained(model), "drawn": drawn}
    print("| bits | block | zero points | scales |", " | ".join(sources), "|")
    print("| --- " * 4 + "| ---: " * len(sources) + "|")
    try:
        for how in ways():
            errors = (f"{error(source(), how):.3g}" for source in sources.values())
            points = "no" if how.symmetric else "yes"
            print(
                f"| {how.bits} | {how.block_size or 'channel'} | {points} | {how.method} |",
                " | ".join(errors),
                "|",
            )
    except SafeCodeError as failure:
        raise SystemExit(f"error: {failure}") from failure


if __name__ == "__main__":
    main()
