"""Qwen3 in the size of its 0.6B, and tiny."""

from __future__ import annotations

from random_families import text_family

FAMILY = text_family(
    "Qwen3Config",
    {
        "tiny": {"head_dim": 32},
        "0.6b": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    },
)
