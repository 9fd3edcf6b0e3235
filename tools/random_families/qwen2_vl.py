"""Qwen2-VL in the sizes of its 2B and 7B checkpoints, and tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from random_families import RandomFamily

__all__ = [
    "CHAT_TEMPLATE",
    "FAMILY",
    "SPECIALS",
    "TOKEN_IDS",
    "flatten_config",
    "preprocessor",
    "text_config",
]

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKEN_IDS = {
    "image_token_id": SPECIALS.index("<|image_pad|>"),
    "video_token_id": SPECIALS.index("<|video_pad|>"),
    "vision_start_token_id": SPECIALS.index("<|vision_start|>"),
    "vision_end_token_id": SPECIALS.index("<|vision_end|>"),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def text_config(tie: bool, sections: list[int], **sizes: Any) -> dict[str, Any]:
    """A decoder of the Qwen2 kind; `sections` share out the pairs of a head among the axes of a position."""
    rope = {"type": "mrope", "mrope_section": sections, "rope_theta": 1000000.0}
    return {"rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": tie, **sizes}


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "tie_word_embeddings": True,
        "text_config": text_config(
            True,
            [2, 3, 3],
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=352,
            max_position_embeddings=512,
        ),
        "vision_config": {
            "depth": 2,
            "embed_dim": 48,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "num_heads": 3,
            "patch_size": 8,
        },
    },
    "2b": {
        "tie_word_embeddings": True,
        "text_config": text_config(
            True,
            [16, 24, 24],
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            vocab_size=151936,
            max_position_embeddings=32768,
        ),
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
    },
    "7b": {
        "tie_word_embeddings": False,
        "text_config": text_config(
            False,
            [16, 24, 24],
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
            max_position_embeddings=32768,
        ),
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    },
}


def preprocessor(config: Any) -> dict[str, Any]:
    """With the real limits, but for the tiny sizes, whose patches are small."""
    patch = config.vision_config.patch_size
    tokens = (4, 16384) if patch > 8 else (4, 40)
    token = (patch * 2) ** 2
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_pixels": tokens[0] * token,
        "max_pixels": tokens[1] * token,
        "merge_size": 2,
        "patch_size": patch,
        "temporal_patch_size": 2,
    }


def flatten_config(folder: Path, config: Any) -> None:
    """Rewrites config.json as it is on the hub: the decoder's keys at the top, `rope_scaling`, `in_chans`."""
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    text, vision = written.pop("text_config"), written["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    vision["in_chans"] = vision.pop("in_channels")
    for key in ("rope_parameters", "model_type"):
        vision.pop(key, None)
    path.write_text(json.dumps({**text, **written}, indent=2) + "\n", encoding="utf-8")


FAMILY = RandomFamily(
    config_class="Qwen2VLConfig",
    sizes={name: {**TOKEN_IDS, **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
    preprocessor=preprocessor,
    processor=lambda config: {},
    chat_template=CHAT_TEMPLATE,
    words=("Yes", "No"),
    write_more=flatten_config,
)
