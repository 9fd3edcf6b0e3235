"""Writes a checkpoint with random weights: the real layout and sizes, no download. numpy only.

python tools/make_random_checkpoint.py --family idefics3 --size 500m --output build/random-500m
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIZES", "RandomModel", "write_checkpoint"]

SPECIALS = (
    "<|pad|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
)
# A space in front comes first: the merges of "Sorry" would otherwise leave the space of " Sorry" alone.
WORDS = (
    "\u0120safe",
    "\u0120unsafe",
    "\u0120Yes",
    "\u0120No",
    "\u0120Sorry",
    "\u0120I",
    "\u0120cannot",
    "Sorry",
    "I",
)
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Values are drawn once and reused at random offsets: drawing half a billion would take most of the time.
POOL = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """The sizes of an Idefics3 model; `spread` scales the token embeddings."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_layers: int
    vision_heads: int
    image_size: int
    patch_size: int
    scale_factor: int
    tie_word_embeddings: bool = True
    spread: float = 0.08


SIZES = {
    "tiny": RandomModel(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=320,
        max_position_embeddings=256,
        vision_hidden_size=48,
        vision_intermediate_size=96,
        vision_layers=2,
        vision_heads=3,
        image_size=32,
        patch_size=8,
        scale_factor=2,
    ),
    "demo": RandomModel(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=693,
        max_position_embeddings=512,
        vision_hidden_size=192,
        vision_intermediate_size=576,
        vision_layers=4,
        vision_heads=4,
        image_size=96,
        patch_size=12,
        scale_factor=2,
    ),
    "500m": RandomModel(
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        head_dim=64,
        vocab_size=49280,
        max_position_embeddings=8192,
        vision_hidden_size=768,
        vision_intermediate_size=3072,
        vision_layers=12,
        vision_heads=12,
        image_size=512,
        patch_size=16,
        scale_factor=4,
        tie_word_embeddings=False,
    ),
}


def write_checkpoint(
    folder: Path,
    model: RandomModel,
    *,
    seed: int = 0,
    dtype: Literal["F32", "F16", "BF16"] = "BF16",
    shard_bytes: int | None = None,
) -> None:
    """Writes every file of the checkpoint into `folder`; `shard_bytes` splits the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.PCG64(seed))
    tensors = list(_tensors(model))
    shards: list[list[tuple[str, tuple[int, ...], float]]] = [[]]
    filled = 0
    for tensor in tensors:
        size = math.prod(tensor[1]) * (4 if dtype == "F32" else 2)
        if shard_bytes and filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    pool = generator.standard_normal(POOL, dtype=np.float32)
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", shards[0], generator, pool, dtype)
    else:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        for name, shard in zip(names, shards, strict=True):
            _write_safetensors(folder / name, shard, generator, pool, dtype)
        index = {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    _write_settings(folder, model, {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype])
    _write_tokenizer(folder, model.vocab_size)


def _tensors(m: RandomModel) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and scale of every tensor; a negative scale means 1 plus noise of that size (norms)."""

    def linear(
        name: str, out: int, into: int, *, bias: bool = False
    ) -> Iterator[tuple[str, tuple[int, ...], float]]:
        yield f"{name}.weight", (out, into), into**-0.5
        if bias:
            yield f"{name}.bias", (out,), 0.02

    text, vision = "model.text_model.", "model.vision_model."
    e, d = m.hidden_size, m.head_dim
    yield f"{text}embed_tokens.weight", (m.vocab_size, e), m.spread
    for i in range(m.num_hidden_layers):
        layer = f"{text}layers.{i}."
        yield f"{layer}input_layernorm.weight", (e,), -0.1
        yield from linear(f"{layer}self_attn.q_proj", m.num_attention_heads * d, e)
        yield from linear(f"{layer}self_attn.k_proj", m.num_key_value_heads * d, e)
        yield from linear(f"{layer}self_attn.v_proj", m.num_key_value_heads * d, e)
        yield from linear(f"{layer}self_attn.o_proj", e, m.num_attention_heads * d)
        yield f"{layer}post_attention_layernorm.weight", (e,), -0.1
        yield from linear(f"{layer}mlp.gate_proj", m.intermediate_size, e)
        yield from linear(f"{layer}mlp.up_proj", m.intermediate_size, e)
        yield from linear(f"{layer}mlp.down_proj", e, m.intermediate_size)
    yield f"{text}norm.weight", (e,), -0.1
    if not m.tie_word_embeddings:
        yield from linear("lm_head", m.vocab_size, e)
    w, patches = m.vision_hidden_size, (m.image_size // m.patch_size) ** 2
    yield f"{vision}embeddings.patch_embedding.weight", (w, 3, m.patch_size, m.patch_size), 0.1
    yield f"{vision}embeddings.patch_embedding.bias", (w,), 0.02
    yield f"{vision}embeddings.position_embedding.weight", (patches, w), 0.3
    for i in range(m.vision_layers):
        layer = f"{vision}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}self_attn.{name}", w, w, bias=True)
        yield from linear(f"{layer}mlp.fc1", m.vision_intermediate_size, w, bias=True)
        yield from linear(f"{layer}mlp.fc2", w, m.vision_intermediate_size, bias=True)
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{layer}{name}.weight", (w,), -0.1
            yield f"{layer}{name}.bias", (w,), 0.02
    yield f"{vision}post_layernorm.weight", (w,), -0.1
    yield f"{vision}post_layernorm.bias", (w,), 0.02
    yield from linear("model.connector.modality_projection.proj", e, w * m.scale_factor**2)


def _write_safetensors(
    path: Path,
    tensors: list[tuple[str, tuple[int, ...], float]],
    generator: np.random.Generator,
    pool: NDArray[np.float32],
    dtype: str,
) -> None:
    header, offset = {}, 0
    for name, shape, _ in tensors:
        size = math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, scale in tensors:
            start = int(generator.integers(POOL))
            values = np.resize(np.roll(pool, -start)[: math.prod(shape)], shape) * np.float32(abs(scale))
            _encode(values + np.float32(scale < 0), dtype).tofile(file)


def _encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return rounded
    return values.astype(np.float16 if dtype == "F16" else np.float32)


def _write_settings(folder: Path, m: RandomModel, dtype: str) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": m.tie_word_embeddings,
        "dtype": dtype,
        **{key: getattr(m, key) for key in RandomModel.__dataclass_fields__ if key in TEXT_KEYS},
        **ids,
    }
    vision = {
        "model_type": "idefics3_vision",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": m.vision_hidden_size,
        "intermediate_size": m.vision_intermediate_size,
        "num_hidden_layers": m.vision_layers,
        "num_attention_heads": m.vision_heads,
        "image_size": m.image_size,
        "patch_size": m.patch_size,
        "layer_norm_eps": 1e-6,
        "num_channels": 3,
        "dtype": dtype,
    }
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": SPECIALS.index("<image>"),
        "scale_factor": m.scale_factor,
        "tie_word_embeddings": m.tie_word_embeddings,
        "dtype": dtype,
        "text_config": text,
        "vision_config": vision,
        **ids,
    }
    _json(folder / "config.json", config)
    _json(folder / "generation_config.json", {"do_sample": False, **ids})
    edge = {"longest_edge": m.image_size}
    preprocessor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "do_image_splitting": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 1,
        "size": edge,
        "max_image_size": edge,
    }
    _json(folder / "preprocessor_config.json", preprocessor)
    features = (m.image_size // m.patch_size // m.scale_factor) ** 2
    _json(
        folder / "processor_config.json", {"processor_class": "Idefics3Processor", "image_seq_len": features}
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE: control tokens, the 256 bytes, a few words with their merges, and fillers."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *letters])}
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append([word[: end - 1], word[end - 1]])
    if len(vocab) > vocab_size:
        raise ValueError(f"vocab_size must be at least {len(vocab)}, got {vocab_size}")
    for filler in range(vocab_size - len(vocab)):
        vocab[f"\u0120filler{filler}"] = len(vocab)
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    _json(folder / "tokenizer.json", tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[1],
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    _json(folder / "tokenizer_config.json", settings)


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=["idefics3"], default="idefics3")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--dtype", choices=["F32", "F16", "BF16"], default="BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, help="largest size of a weight file")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    write_checkpoint(
        arguments.output,
        SIZES[arguments.size],
        seed=arguments.seed,
        dtype=arguments.dtype,
        shard_bytes=arguments.shard_bytes,
    )
    print(arguments.output)


if __name__ == "__main__":
    main()
