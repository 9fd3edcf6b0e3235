"""Qwen2 in the size of its 0.5B, and tiny."""

from __future__ import annotations

from random_families import text_family

FAMILY = text_family(
    "Qwen2Config",
    {
        "0.5b": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    },
)
