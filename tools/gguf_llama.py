"""A Llama in a GGUF file as what a Hugging Face checkpoint holds: tensors, config.json and a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

__all__ = ["GGUFLlama", "unpermuted"]

# Architecture, model of the tokenizer, and how it cuts words.
KNOWN = ("llama", "gpt2", "smollm")
# Of `tokenizer.ggml.token_type`.
CONTROL = 3
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GGUFLlama:
    """One opened file.

    Raises:
        ValueError: it holds no Llama, or a tokenizer that is not a byte-level BPE whose digits stand alone.
    """

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = reader.tensors
        found = tuple(
            self._fields.get(name)
            for name in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
        )
        if found != KNOWN:
            raise ValueError(f"{path}: expected architecture and tokenizer {KNOWN}, got {found}")

    @property
    def chat_template(self) -> str:
        return str(self._fields["tokenizer.chat_template"])

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in float32 by the name that transformers has for it, rows in transformers' order."""
        heads = {"attn_q": self._of("attention.head_count"), "attn_k": self._of("attention.head_count_kv")}
        for tensor in self._tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            name = tensor.name.removesuffix(".weight")
            if name in TENSORS:
                yield f"{TENSORS[name]}.weight", values
                continue
            block, number, part = name.split(".")
            if block != "blk":
                raise ValueError(f"there is no place for the tensor {tensor.name}")
            rows = unpermuted(values, heads[part]) if part in heads else values
            yield f"model.layers.{number}.{LAYER_TENSORS[part]}.weight", rows

    def config(self) -> dict[str, Any]:
        """config.json of a LlamaForCausalLM."""
        tied = all(tensor.name != "output.weight" for tensor in self._tensors)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self._of("embedding_length"),
            "intermediate_size": self._of("feed_forward_length"),
            "num_hidden_layers": self._of("block_count"),
            "num_attention_heads": self._of("attention.head_count"),
            "num_key_value_heads": self._of("attention.head_count_kv"),
            "vocab_size": self._of("vocab_size"),
            "max_position_embeddings": self._of("context_length"),
            "rms_norm_eps": _shortest(self._of("attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self._of("rope.freq_base")),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": tied,
            **self.token_ids(),
        }

    def token_ids(self) -> dict[str, int]:
        """The ids of the first, last and padding tokens."""
        return {
            f"{name}_token_id": self._fields[f"tokenizer.ggml.{key}_token_id"]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        }

    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json: a byte-level BPE in which every digit is a piece of its own."""
        tokens: list[str] = self._fields["tokenizer.ggml.tokens"]
        kinds: list[int] = self._fields["tokenizer.ggml.token_type"]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": number, "content": token, **flags, "special": True}
                for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
                if kind == CONTROL
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
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
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in self._fields["tokenizer.ggml.merges"]],
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json with the chat template."""
        tokens = self._fields["tokenizer.ggml.tokens"]
        named = {f"{key[:3]}_token": tokens[number] for key, number in self.token_ids().items()}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self._of("context_length"),
            "clean_up_tokenization_spaces": False,
            "unk_token": tokens[self._fields["tokenizer.ggml.unknown_token_id"]],
            **named,
            "chat_template": self.chat_template,
        }

    def _of(self, name: str) -> Any:
        return self._fields[f"llama.{name}"]


def unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The rows (heads * D, n) of queries or keys in transformers' order.

    GGUF has the two halves of a head, which rotary positions turn together, interleaved row by row.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _shortest(value: float) -> float:
    """A number that was stored in float32, as it was written before."""
    return float(str(np.float32(value)))
