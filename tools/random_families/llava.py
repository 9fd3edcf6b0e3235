"""LLaVA in the size of LLaVA-1.5-7B, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily

SPECIALS = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
# Pictures come before the text of a turn, and what the assistant said is marked as transformers' templates do.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] }}{% endgeneration %}"
    "{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TINY_TEXT = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 352,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
TINY_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 32,
}
# Vicuna's config.json says no more than this; the rest are the defaults of Llama.
VICUNA = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"image_seq_length": 16, "text_config": TINY_TEXT, "vision_config": TINY_VISION},
    "7b": {"text_config": VICUNA, "vision_config": CLIP_LARGE},
}


def preprocessor(config: Any) -> dict[str, Any]:
    """preprocessor_config.json of a CLIP tower."""
    size = config.vision_config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }


def processor(name: str, config: Any) -> dict[str, Any]:
    """processor_config.json of LLaVA's processors."""
    return {
        "processor_class": name,
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }


FAMILY = RandomFamily(
    config_class="LlavaConfig",
    sizes={name: {"image_token_index": SPECIALS.index("<image>"), **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    preprocessor=preprocessor,
    processor=lambda config: processor("LlavaProcessor", config),
    chat_template=CHAT_TEMPLATE,
    adds_bos=True,
)
