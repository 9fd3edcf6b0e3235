"""Idefics3 in the sizes of SmolVLM and Idefics3-8B, of the demo model, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily

SPECIALS = (
    "<|pad|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _text(tie: bool, **sizes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": tie, **sizes}


SIGLIP_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
LLAMA_3_1_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "scale_factor": 2,
        "tie_word_embeddings": True,
        "text_config": _text(
            True,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=352,
            max_position_embeddings=256,
        ),
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
        },
    },
    "demo": {
        "scale_factor": 2,
        "tie_word_embeddings": True,
        "text_config": _text(
            True,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=693,
            max_position_embeddings=512,
        ),
        "vision_config": {
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 96,
            "patch_size": 12,
        },
    },
    "256m": {
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "text_config": _text(
            False,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            vocab_size=49280,
            max_position_embeddings=8192,
            rope_theta=100000.0,
        ),
        "vision_config": SIGLIP_BASE,
    },
    "500m": {
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "text_config": _text(
            False,
            hidden_size=960,
            intermediate_size=2560,
            num_hidden_layers=32,
            num_attention_heads=15,
            num_key_value_heads=5,
            head_dim=64,
            vocab_size=49280,
            max_position_embeddings=8192,
            rope_theta=100000.0,
        ),
        "vision_config": SIGLIP_BASE,
    },
    "2b": {
        "scale_factor": 3,
        "tie_word_embeddings": False,
        "text_config": _text(
            False,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=64,
            vocab_size=49155,
            max_position_embeddings=16384,
            rope_theta=273768.0,
        ),
        "vision_config": {**SIGLIP_SO400M, "image_size": 384},
    },
    "8b": {
        "scale_factor": 2,
        "tie_word_embeddings": False,
        "text_config": _text(
            False,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=128259,
            max_position_embeddings=131072,
            rope_parameters=LLAMA_3_1_ROPE,
        ),
        "vision_config": {**SIGLIP_SO400M, "image_size": 364},
    },
}


def _preprocessor(config: Any) -> dict[str, Any]:
    size = config.vision_config.image_size
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "do_image_splitting": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 1,
        "size": {"longest_edge": size},
        "max_image_size": {"longest_edge": size},
    }


def _processor(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    side = vision.image_size // vision.patch_size // config.scale_factor
    return {"processor_class": "Idefics3Processor", "image_seq_len": side**2}


FAMILY = RandomFamily(
    config_class="Idefics3Config",
    sizes={name: {"image_token_id": SPECIALS.index("<image>"), **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<|im_start|>",
    eos="<end_of_utterance>",
    pad="<|pad|>",
    preprocessor=_preprocessor,
    processor=_processor,
    chat_template=CHAT_TEMPLATE,
)
