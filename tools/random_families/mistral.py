"""Mistral in the size of its 7B, and tiny."""

from __future__ import annotations

from random_families import text_family

FAMILY = text_family(
    "MistralConfig",
    {
        "tiny": {"sliding_window": 256},
        "7b": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": None},
    },
)
