"""Idefics2 in the size of Idefics2-8B, and tiny."""

from __future__ import annotations

from typing import Any

from random_families import RandomFamily

SPECIALS = ("<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text_config": {
            "model_type": "mistral",
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 352,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "sliding_window": 512,
        },
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 56,
            "patch_size": 8,
        },
        "perceiver_config": {
            "hidden_size": 64,
            "resampler_n_latents": 8,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
    },
    "8b": {
        "text_config": {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32003,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 980,
            "patch_size": 14,
        },
        "perceiver_config": {
            "resampler_n_latents": 64,
            "resampler_depth": 3,
            "resampler_n_heads": 16,
            "resampler_head_dim": 96,
            "num_key_value_heads": 4,
        },
    },
}


def _preprocessor(config: Any) -> dict[str, Any]:
    longest = config.vision_config.image_size
    return {
        "image_processor_type": "Idefics2ImageProcessor",
        "processor_class": "Idefics2Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "do_image_splitting": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 2,
        "size": {"longest_edge": longest, "shortest_edge": longest * 27 // 70},
    }


def _processor(config: Any) -> dict[str, Any]:
    latents = config.perceiver_config.resampler_n_latents
    return {"processor_class": "Idefics2Processor", "image_seq_len": latents}


FAMILY = RandomFamily(
    config_class="Idefics2Config",
    sizes={name: {"image_token_id": SPECIALS.index("<image>"), **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<s>",
    eos="<end_of_utterance>",
    pad="<unk>",
    preprocessor=_preprocessor,
    processor=_processor,
    chat_template=CHAT_TEMPLATE,
    adds_bos=True,
)
