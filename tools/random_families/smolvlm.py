"""SmolVLM2 in the sizes of its three checkpoints, and tiny; the parts are those of Idefics3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from random_families import idefics3

NAME = {"processor_class": "SmolVLMProcessor"}
# SmolVLM2-256M and -500M have the sizes of the first SmolVLM; the 2.2B has another vocabulary and other positions.
SIZES = {name: idefics3.FAMILY.sizes[name] for name in ("tiny", "256m", "500m", "2b")}
POSITIONS = {"vocab_size": 49280, "max_position_embeddings": 8192, "rope_theta": 130000.0}
SIZES["2b"] = {**SIZES["2b"], "text_config": {**SIZES["2b"]["text_config"], **POSITIONS}}


def _preprocessor(config: Any) -> dict[str, Any]:
    """A full split, as the hub has it, and how videos would be sampled."""
    edge = config.vision_config.image_size
    return idefics3.FAMILY.preprocessor(config) | {
        **NAME,
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": True,
        "size": {"longest_edge": 4 * edge},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": edge}},
    }


def _processor(config: Any) -> dict[str, Any]:
    return idefics3.FAMILY.processor(config) | NAME


FAMILY = replace(
    idefics3.FAMILY,
    config_class="SmolVLMConfig",
    sizes=SIZES,
    preprocessor=_preprocessor,
    processor=_processor,
)
