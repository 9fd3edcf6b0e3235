"""Llama in the sizes of SmolLM2, and tiny."""

from __future__ import annotations

from random_families import text_family

SMOLLM2 = {
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
FAMILY = text_family(
    "LlamaConfig",
    {
        "tiny": {"tie_word_embeddings": True},
        "135m": {
            **SMOLLM2,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        "360m": {
            **SMOLLM2,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
        },
    },
)
