"""Compares the ways to quantise a decoder's weights: squared error over the weights' own squares.

python tools/quantization_error.py --model models/demo --model build/random-2b --layers 1

Measured on the matrices of the checkpoints' decoder layers, and on drawn ones with heavy tails (Student's t with 5
degrees of freedom) and outputs of different sizes, as large models have them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import SafeCodeError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.quantize import dequantize, quantize
from safecode_trt.manifest import Quantization
from safecode_trt.models import load_spec
from safecode_trt.text_table import TextTable, markdown

Array = NDArray[np.float32]
INPUTS, OUTPUTS, DRAWN = 1024, 512, 4
NOTE = (
    "`drawn` are heavy-tailed matrices whose outputs differ in size; those of random checkpoints are normal"
)


def ways() -> Iterator[Quantization]:
    """Every combination that an export offers."""
    for bits, sizes in ((4, (32, 64, 128)), (8, (32, None))):
        for size in sizes:
            plain = Quantization(bits=4 if bits == 4 else 8, block_size=size)
            for symmetric in (True, False):
                yield replace(plain, symmetric=symmetric)
                if bits == 4:
                    yield replace(plain, symmetric=symmetric, method="scale-search")


def stored(model: Path, layers: int | None) -> Iterator[Array]:
    """The matrices of a checkpoint's first decoder layers; None: of all."""
    spec = load_spec(model)
    checkpoint = Checkpoint(model, spec.renames, spec.joins)
    for i in range(min(layers or spec.text.num_hidden_layers, spec.text.num_hidden_layers)):
        for name in checkpoint.names(spec.weights.layer.format(i=i)):
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
    parser.add_argument("--model", type=Path, action="append", required=True, help="checkpoint folder")
    parser.add_argument("--layers", type=int, help="only so many decoder layers of each; default: all")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    sources: dict[str, Callable[[], Iterator[Array]]] = {
        model.name: partial(stored, model, given.layers) for model in given.model
    }
    sources["drawn"] = drawn
    try:
        rows = [
            (
                str(how.bits),
                str(how.block_size or "channel"),
                "no" if how.symmetric else "yes",
                how.method,
                *(f"{error(source(), how):.3g}" for source in sources.values()),
            )
            for how in ways()
        ]
    except SafeCodeError as failure:
        raise SystemExit(f"error: {failure}") from failure
    columns = ("bits", "block", "zero points", "scales", *sources)
    table = TextTable(title="Squared error over the weights' squares", columns=columns, rows=tuple(rows))
    command = shlex.join(["python", "tools/quantization_error.py", *sys.argv[1:]])
    text = f"# Ways to quantise weights\n\n- `{command}`\n- {NOTE}\n\n{markdown(table)}"
    print(text)
    if given.report:
        given.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
