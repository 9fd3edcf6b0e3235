"""Qwen2.5-VL in the sizes of its 3B and 7B checkpoints, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily
from random_families.qwen2_vl import (
    CHAT_TEMPLATE,
    SPECIALS,
    TOKEN_IDS,
    flatten_config,
    preprocessor,
    text_config,
)

VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}

SIZES: dict[str, dict[str, Any]] = {
    # Windows of 3 x 3 tokens, which neither side of the pictures in the tests is a multiple of.
    "tiny": {
        "tie_word_embeddings": True,
        "text_config": text_config(
            True,
            [2, 3, 3],
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=352,
            max_position_embeddings=512,
        ),
        "vision_config": {
            "depth": 2,
            "hidden_size": 48,
            "intermediate_size": 80,
            "out_hidden_size": 64,
            "num_heads": 3,
            "patch_size": 8,
            "window_size": 48,
            "fullatt_block_indexes": [1],
        },
    },
    "3b": {
        "tie_word_embeddings": True,
        "text_config": text_config(
            True,
            [16, 24, 24],
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            vocab_size=151936,
            max_position_embeddings=128000,
        ),
        "vision_config": {**VISION, "out_hidden_size": 2048},
    },
    "7b": {
        "tie_word_embeddings": False,
        "text_config": text_config(
            False,
            [16, 24, 24],
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
            max_position_embeddings=128000,
        ),
        "vision_config": {**VISION, "out_hidden_size": 3584},
    },
}


FAMILY = RandomFamily(
    config_class="Qwen2_5_VLConfig",
    sizes={name: {**TOKEN_IDS, **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
    preprocessor=lambda config: preprocessor(config) | {"processor_class": "Qwen2_5_VLProcessor"},
    processor=lambda config: {},
    chat_template=CHAT_TEMPLATE,
    words=("Yes", "No"),
    write_more=flatten_config,
)
