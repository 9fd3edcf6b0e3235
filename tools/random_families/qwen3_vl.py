"""Qwen3-VL in the sizes of its 2B, 4B and 8B checkpoints, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily
from random_families.qwen2_vl import CHAT_TEMPLATE, SPECIALS, TOKEN_IDS, preprocessor

__all__ = ["FAMILY"]


def _text(tie: bool, sections: list[int], theta: float = 5000000.0, **sizes: Any) -> dict[str, Any]:
    rope = {"mrope_interleaved": True, "mrope_section": sections, "rope_type": "default", "rope_theta": theta}
    return {"rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": tie, **sizes}


REAL_TEXT = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
}
SMALL_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "deepstack_visual_indexes": [5, 11, 17],
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "tie_word_embeddings": True,
        "text_config": _text(
            True,
            [4, 2, 2],
            theta=10000.0,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=352,
            max_position_embeddings=512,
        ),
        "vision_config": {
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 80,
            "out_hidden_size": 64,
            "num_heads": 3,
            "patch_size": 8,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
    },
    "2b": {
        "tie_word_embeddings": True,
        "text_config": _text(
            True,
            [24, 20, 20],
            **REAL_TEXT,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
        ),
        "vision_config": {**SMALL_VISION, "out_hidden_size": 2048},
    },
    "4b": {
        "tie_word_embeddings": True,
        "text_config": _text(
            True,
            [24, 20, 20],
            **REAL_TEXT,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
        ),
        "vision_config": {**SMALL_VISION, "out_hidden_size": 2560},
    },
    "8b": {
        "tie_word_embeddings": False,
        "text_config": _text(
            False,
            [24, 20, 20],
            **REAL_TEXT,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
        ),
        "vision_config": {"out_hidden_size": 4096},
    },
}


def _preprocessor(config: Any) -> dict[str, Any]:
    """As newer files have it: the limits are a `size`."""
    written = preprocessor(config)
    low, high = written.pop("min_pixels"), written.pop("max_pixels")
    if config.vision_config.patch_size > 8:
        low, high = 65536, 16777216
    written["size"] = {"shortest_edge": low, "longest_edge": high}
    half = [0.5, 0.5, 0.5]
    return {
        **written,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "image_mean": half,
        "image_std": half,
    }


FAMILY = RandomFamily(
    config_class="Qwen3VLConfig",
    sizes={name: {**TOKEN_IDS, **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
    preprocessor=_preprocessor,
    processor=lambda config: {},
    chat_template=CHAT_TEMPLATE,
    words=("Yes", "No"),
)
