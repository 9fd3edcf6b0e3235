"""InternVL3 in the sizes of the 1B, 2B and 8B checkpoints, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _text(**sizes: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 151674,
        **sizes,
    }


def _vision(**sizes: Any) -> dict[str, Any]:
    return {
        "attention_bias": True,
        "hidden_size": 1024,
        "image_size": [448, 448],
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": [14, 14],
        "use_qk_norm": False,
        **sizes,
    }


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_seq_length": 4,
        "tie_word_embeddings": True,
        "text_config": _text(
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=352,
            max_position_embeddings=512,
        ),
        "vision_config": _vision(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=[32, 32],
            patch_size=[8, 8],
        ),
    },
    "1b": {
        "tie_word_embeddings": False,
        "text_config": _text(
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
        ),
        "vision_config": _vision(),
    },
    "2b": {
        "tie_word_embeddings": False,
        "text_config": _text(
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
        ),
        "vision_config": _vision(),
    },
    "8b": {
        "tie_word_embeddings": False,
        "text_config": _text(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        ),
        "vision_config": _vision(),
    },
}


def _preprocessor(config: Any) -> dict[str, Any]:
    height, width = config.vision_config.image_size
    return {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 12,
        "min_patches": 1,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"height": height, "width": width},
    }


FAMILY = RandomFamily(
    config_class="InternVLConfig",
    sizes={name: {"image_token_id": SPECIALS.index("<IMG_CONTEXT>"), **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
    preprocessor=_preprocessor,
    processor=lambda config: {
        "processor_class": "InternVLProcessor",
        "image_seq_length": config.image_seq_length,
    },
    chat_template=CHAT_TEMPLATE,
    # An answer follows a line break.
    words=("unsafe", "safe"),
)
