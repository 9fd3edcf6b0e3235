"""LLaVA-NeXT in the sizes of LLaVA-1.6 with Vicuna-7B and with Mistral-7B, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily
from random_families.llava import (
    CHAT_TEMPLATE,
    CLIP_LARGE,
    SPECIALS,
    TINY_TEXT,
    TINY_VISION,
    VICUNA,
    processor,
)
from random_families.llava import preprocessor as clip_preprocessor

MISTRAL = {
    "model_type": "mistral",
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32064,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_seq_length": 16,
        "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]],
        "text_config": TINY_TEXT,
        "vision_config": TINY_VISION,
    },
    "7b": {"text_config": VICUNA, "vision_config": CLIP_LARGE},
    "mistral-7b": {"text_config": MISTRAL, "vision_config": CLIP_LARGE},
}


def _preprocessor(config: Any) -> dict[str, Any]:
    return {
        **clip_preprocessor(config),
        "image_processor_type": "LlavaNextImageProcessor",
        "aspect_ratio_setting": "anyres",
        "do_pad": True,
        "image_grid_pinpoints": config.image_grid_pinpoints,
    }


FAMILY = RandomFamily(
    config_class="LlavaNextConfig",
    sizes={name: {"image_token_index": SPECIALS.index("<image>"), **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    preprocessor=_preprocessor,
    processor=lambda config: processor("LlavaNextProcessor", config),
    chat_template=CHAT_TEMPLATE,
    adds_bos=True,
)
