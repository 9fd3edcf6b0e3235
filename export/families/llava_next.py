"""LLaVA-NeXT: the vision side as a traceable module, and what transformers calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.clip_tower import TowerEncoder, loaded
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = ["VisionEncoder", "image_features", "model_inputs", "vision_encoder"]


class VisionEncoder(TowerEncoder):
    """The views' features, and the newline once for each view."""

    newline: Tensor

    def forward(self, pixel_values: Tensor) -> Any:
        return super().forward(pixel_values), self.newline.expand(pixel_values.shape[0], -1)


def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its projector in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = LlavaNextConfig.from_pretrained(folder)
    module = VisionEncoder(config, LlavaNextMultiModalProjector(config))
    newline = checkpoint.get("model.image_newline", (config.text_config.hidden_size,))
    module.register_buffer("newline", torch.from_numpy(newline))
    return loaded(module, checkpoint)


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes in addition to the tokens."""
    width, height = probe.picture.layout.size
    views = torch.from_numpy(np.stack(probe.picture.views))
    return {"pixel_values": views[None], "image_sizes": torch.tensor([[height, width]])}


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    found = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    return torch.cat(tuple(found.pooler_output))
