"""A tokenizer for random checkpoints: a byte-level BPE of the control tokens, the bytes, a few words and fillers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from random_families import RandomFamily

__all__ = ["RANDOM_REQUEST", "RANDOM_SAFECODE", "write_tokenizer"]

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

# The tokenizer knows a few words and spells everything else in bytes. A request of 8 of its
# words, and a judge's question of 46, are as long as ours are for a real tokenizer.
RANDOM_REQUEST = " cannot" * 8
RANDOM_SAFECODE = {
    "judge_template": "{request}" + " safe" * 46,
    "verdict": {"safe": " safe", "unsafe": " unsafe"},
}


def write_tokenizer(folder: Path, made: RandomFamily, vocab_size: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json with exactly `vocab_size` tokens and the added ones."""
    vocab, merges = _vocabulary(made, vocab_size)
    added = [*enumerate(made.specials), *enumerate(made.added, start=vocab_size)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, token) for i, token in added],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": _begins_with(made.bos, vocab[made.bos]) if made.adds_bos else None,
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
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": made.bos,
        "eos_token": made.eos,
        "pad_token": made.pad,
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _vocabulary(made: RandomFamily, size: int) -> tuple[dict[str, int], list[list[str]]]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]
    vocab = {token: i for i, token in enumerate([*made.specials, *letters])}
    merges = []
    for word in (*WORDS, *made.words):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append([word[: end - 1], word[end - 1]])
    if len(vocab) > size:
        raise ValueError(f"vocab_size must be at least {len(vocab)}, got {size}")
    for filler in range(size - len(vocab)):
        vocab[f"\u0120filler{filler}"] = len(vocab)
    return vocab, merges


def _added(number: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": True}


def _begins_with(token: str, number: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, two],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
