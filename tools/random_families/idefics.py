"""Idefics in the size of idefics-9b-instruct, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily

ADDED = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
SIZES = {
    "tiny": {
        "vocab_size": 352,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "alpha_type": "vector",
        "cross_layer_interval": 2,
        "perceiver_config": {
            "qk_layer_norms_perceiver": True,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 24,
            "resampler_n_latents": 6,
        },
        "vision_config": {
            "embed_dim": 48,
            "image_size": 32,
            "intermediate_size": 96,
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "patch_size": 8,
        },
    },
    "9b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "alpha_type": "float",
        "cross_layer_interval": 4,
        "perceiver_config": {"qk_layer_norms_perceiver": True},
        "vision_config": {
            "embed_dim": 1280,
            "image_size": 224,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "patch_size": 14,
        },
    },
}


def _preprocessor(config: Any) -> dict[str, Any]:
    return {
        "image_num_channels": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "IdeficsImageProcessor",
        "image_size": config.vision_config.image_size,
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "IdeficsProcessor",
    }


FAMILY = RandomFamily(
    config_class="IdeficsConfig",
    sizes={
        name: {
            "additional_vocab_size": len(ADDED),
            "qk_layer_norms": True,
            "use_resampler": True,
            "tie_word_embeddings": False,
            **size,
        }
        for name, size in SIZES.items()
    },
    specials=("<unk>", "<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    pad="<unk>",
    added=ADDED,
    adds_bos=True,
    preprocessor=_preprocessor,
    processor=lambda config: {},
    chat_template=None,
)
