"""How much memory models take on which board: computed from their configurations, not measured.

    python tools/memory_table.py              prints the table
    python tools/memory_table.py --write      puts it into docs/jetson.md

Counts what a running bundle holds: weights of the decoder and the vision encoder in float16 or as codes, keys and
values, the embedding table, which is mapped from its file and only in memory as far as it is read, and while a
picture is encoded the scores of one attention layer, before and after the softmax. Other activations, CUDA and
Python come on top.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make_random_checkpoint import make_config, parameter_shapes
from safecode_trt.models.patches import PatchGrid

__all__ = ["Footprint", "footprint", "table"]

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "jetson.md"
MARKS = "<!-- memory -->\n", "<!-- /memory -->\n"
MODELS = (
    ("smolvlm", "500m"),
    ("smolvlm", "2b"),
    ("qwen2_vl", "2b"),
    ("qwen3_vl", "2b"),
    ("qwen2_5_vl", "3b"),
    ("qwen3_vl", "4b"),
    ("qwen2_5_vl", "7b"),
    ("llava", "7b"),
    ("internvl", "8b"),
)
PRECISIONS = ("fp16", "int8", "int4")
# Gigabytes of the boards, which the CPU and the GPU share, and what the system and the libraries are given of it.
BOARDS = {"Orin Nano 8": 8, "Orin NX 16": 16, "AGX Orin 32": 32, "AGX Orin 64": 64, "Thor 128": 128}
SYSTEM_GB = 3
POSITIONS, ROWS = 2048, 2
PICTURE = 1920, 1080
BLOCK = 32  # inputs that share a scale in int4
NOT_DECODER = ("vision", "visual", "connector", "projector", "perceiver", "qformer", "query_tokens", "mlp1")
HALF = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of one model in one precision; `cache` is per position and row, `scores` for one view of a picture."""

    decoder: int
    vision: int
    embeddings: int
    cache: int
    scores: int

    def total(self, positions: int, rows: int) -> int:
        return self.decoder + self.vision + self.embeddings + self.cache * positions * rows + self.scores


def footprint(family: str, size: str, precision: str) -> Footprint:
    """What a bundle of the model holds: float16 activations, the head in int8 unless everything is in float16."""
    config = make_config(family, size)
    text = config.get_text_config()
    decoder = vision = embeddings = 0
    head = False
    for name, shape in _shapes(family, size):
        if any(part in name for part in NOT_DECODER):
            vision += HALF * math.prod(shape)
        elif name.endswith("embed_tokens.weight"):
            embeddings = HALF * math.prod(shape)
        elif name.endswith("lm_head.weight"):
            head = True
            decoder += _weight(shape, "int8" if precision == "int4" else precision)
        else:
            decoder += _weight(shape, precision)
    if not head:  # tied: the decoder has its own copy of the table
        decoder += _weight((text.vocab_size, text.hidden_size), "int8" if precision == "int4" else precision)
    heads = text.num_key_value_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Footprint(
        decoder=decoder,
        vision=vision,
        embeddings=embeddings,
        cache=2 * text.num_hidden_layers * heads * dim * HALF,
        scores=2 * HALF * _heads(config.vision_config) * _patches(config.vision_config) ** 2,
    )


def _heads(vision: Any) -> int:
    return int(getattr(vision, "num_heads", None) or vision.num_attention_heads)


def _patches(vision: Any) -> int:
    """Patches that look at one another: of a picture at its own size, or of one view of a fixed size."""
    if (merge := getattr(vision, "spatial_merge_size", None)) is None:
        sizes = [
            value[0] if isinstance(value, list | tuple) else value
            for value in (vision.image_size, vision.patch_size)
        ]
        return int(sizes[0] // sizes[1]) ** 2
    grid = PatchGrid(patch_size=vision.patch_size, merge_size=merge, temporal_patch_size=1)
    return grid.fitted(*PICTURE, 1, math.prod(PICTURE) * 2).tokens * grid.patches


@functools.cache
def _shapes(family: str, size: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(parameter_shapes(make_config(family, size)))


def _weight(shape: tuple[int, ...], precision: str) -> int:
    """Bytes of a weight (outputs, inputs) with its scales; norms and biases stay in float16."""
    count = math.prod(shape)
    if len(shape) < 2 or precision == "fp16":
        return HALF * count
    if precision == "int8":
        return count + HALF * shape[0]
    return count // 2 + HALF * shape[0] * -(-shape[1] // BLOCK)


def table() -> Iterator[str]:
    """The lines of a Markdown table."""
    columns = [
        "model",
        "precision",
        "decoder",
        "vision",
        "embeddings",
        f"cache, {ROWS} rows",
        "picture",
        "sum",
        "fits on",
    ]
    yield f"| {' | '.join(columns)} |"
    yield f"| --- | --- | {' | '.join(['---:'] * 6)} | --- |"
    for family, size in MODELS:
        for precision in PRECISIONS:
            made = footprint(family, size, precision)
            cache = made.cache * POSITIONS * ROWS
            sizes = (
                made.decoder,
                made.vision,
                made.embeddings,
                cache,
                made.scores,
                made.total(POSITIONS, ROWS),
            )
            cells = [f"{value / 1e9:.2f}" for value in sizes]
            yield f"| {family} {size} | {precision} | {' | '.join(cells)} | {_board(sizes[-1])} |"


def _board(total: int) -> str:
    fitting = (name for name, gigabytes in BOARDS.items() if total / 1e9 + SYSTEM_GB <= gigabytes)
    return next(fitting, "none of these")


def written(document: str) -> str:
    """The document with the table of today between its marks."""
    begin, end = MARKS
    head, rest = document.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}{chr(10).join(table())}\n{end}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write it into docs/jetson.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write("\n".join(table()) + "\n")


if __name__ == "__main__":
    main()
