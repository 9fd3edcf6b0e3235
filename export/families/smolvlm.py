"""SmolVLM2: Idefics3's vision side, made of the classes that transformers has for it."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.idefics3 import VisionEncoder, image_features, loaded, model_inputs

__all__ = ["image_features", "model_inputs", "vision_encoder"]


def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its projector in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = SmolVLMConfig.from_pretrained(folder)
    tower = SmolVLMVisionTransformer._from_config(config.vision_config, attn_implementation="eager")
    return loaded(VisionEncoder(tower, SmolVLMConnector(config)), checkpoint)
