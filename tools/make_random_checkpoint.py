"""Writes a checkpoint with random weights: a family's real layout and sizes, no download.

python tools/make_random_checkpoint.py --family idefics3 --size 500m --output build/random-500m
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from random_families import RandomFamily, families, family
from random_tokenizer import write_tokenizer

__all__ = ["make_config", "parameter_shapes", "write_checkpoint", "write_json"]

Dtype = Literal["F32", "F16", "BF16"]
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Values are drawn once and reused at random offsets: drawing billions would take most of the time.
POOL = 1 << 22
EMBEDDING_SPREAD = 0.08


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be drawn: normal values of this scale around a middle."""

    name: str
    shape: tuple[int, ...]
    middle: float
    scale: float


def make_config(name: str, size: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The family's transformers configuration; `changes` replace keys, nested ones with dots."""
    import transformers

    made = family(name)
    if size not in made.sizes:
        raise ValueError(f"{name} has no size {size}; known: {', '.join(made.sizes)}")
    settings = json.loads(json.dumps(made.sizes[size]))
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        target = settings
        for step in path:
            target = target[step]
        target[last] = value
    return getattr(transformers, made.config_class)(**settings, **made.ids())


def write_checkpoint(
    folder: Path,
    name: str = "idefics3",
    size: str = "tiny",
    *,
    seed: int = 0,
    dtype: Dtype = "BF16",
    shard_bytes: int | None = None,
    changes: Mapping[str, Any] | None = None,
    spread: float = EMBEDDING_SPREAD,
) -> None:
    """Writes every file of the checkpoint into `folder`.

    `shard_bytes` splits the weights, `spread` scales the token embeddings; the others are as for `make_config`.
    """
    made, config = family(name), make_config(name, size, changes)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, list(_tensors(config, spread)), seed, dtype, shard_bytes)
    config.dtype = DTYPES[dtype]
    config.architectures = [_architecture(config)]
    config.save_pretrained(folder)
    _write_settings(folder, made, config)
    text = config.get_text_config()
    write_tokenizer(folder, made, text.vocab_size)
    made.write_more(folder, config)


def _architecture(config: Any) -> str:
    return str(_auto_class(config)._model_mapping[type(config)].__name__)


def _auto_class(config: Any) -> Any:
    """Transformers' class that makes the model of a configuration: with pictures, or a language model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    seen = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if seen else AutoModelForCausalLM


def parameter_shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the model as transformers names it in memory, without making one."""
    import torch

    with torch.device("meta"):
        model = _auto_class(config).from_config(config)
    for name, value in model.named_parameters():
        yield name, tuple(value.shape)


def _tensors(config: Any, spread: float) -> Iterator[Tensor]:
    for name, shape in parameter_shapes(config):
        yield _tensor(name, shape, spread)


def _tensor(name: str, shape: tuple[int, ...], spread: float) -> Tensor:
    if name.endswith("bias"):
        return Tensor(name, shape, 0.0, 0.02)
    if name.endswith("embed_tokens.weight"):
        return Tensor(name, shape, 0.0, spread)
    if name.endswith("weight") and len(shape) == 1:  # a norm
        return Tensor(name, shape, 1.0, 0.1)
    if name.endswith("weight") and "embedding" not in name and "embed." not in name:
        return Tensor(name, shape, 0.0, math.prod(shape[1:]) ** -0.5)
    return Tensor(name, shape, 0.0, 0.3)  # tables of positions, queries, gates


def _write_weights(
    folder: Path, tensors: list[Tensor], seed: int, dtype: Dtype, shard_bytes: int | None
) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    pool = generator.standard_normal(POOL, dtype=np.float32)
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _bytes(tensor, dtype)
        if shard_bytes and filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", shards[0], generator, pool, dtype)
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_safetensors(folder / name, shard, generator, pool, dtype)
    index = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _bytes(tensor: Tensor, dtype: Dtype) -> int:
    return math.prod(tensor.shape) * (4 if dtype == "F32" else 2)


def _write_safetensors(
    path: Path,
    tensors: list[Tensor],
    generator: np.random.Generator,
    pool: NDArray[np.float32],
    dtype: Dtype,
) -> None:
    header, offset = {}, 0
    for tensor in tensors:
        size = _bytes(tensor, dtype)
        span = [offset, offset + size]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            shift = int(generator.integers(POOL))
            drawn = np.roll(pool, -shift) * np.float32(tensor.scale) + np.float32(tensor.middle)
            encoded = _encode(drawn, dtype)
            left = math.prod(tensor.shape)
            while left > 0:
                encoded[:left].tofile(file)
                left -= POOL


def _encode(values: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return rounded
    return values.astype(np.float16 if dtype == "F16" else np.float32)


def _write_settings(folder: Path, made: RandomFamily, config: Any) -> None:
    write_json(folder / "generation_config.json", {"do_sample": False, **made.ids()})
    if preprocessor := made.preprocessor(config):
        write_json(folder / "preprocessor_config.json", preprocessor)
    if processor := made.processor(config):
        write_json(folder / "processor_config.json", processor)
    if made.chat_template is not None:
        (folder / "chat_template.jinja").write_text(made.chat_template, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A file as checkpoints have them: indented, every letter as it is."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=families(), default="idefics3")
    parser.add_argument("--size", default="tiny", help="one of the family's sizes")
    parser.add_argument("--dtype", choices=list(DTYPES), default="BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, help="largest size of a weight file")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.size not in (sizes := family(arguments.family).sizes):
        parser.error(f"{arguments.family} has the sizes {', '.join(sizes)}, got {arguments.size}")
    write_checkpoint(
        arguments.output,
        arguments.family,
        arguments.size,
        seed=arguments.seed,
        dtype=arguments.dtype,
        shard_bytes=arguments.shard_bytes,
    )
    print(arguments.output)


if __name__ == "__main__":
    main()
