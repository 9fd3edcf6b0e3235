"""LLaVA-1.5: the vision side as a traceable module, and what transformers calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.clip_tower import TowerEncoder, loaded
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = ["image_features", "model_inputs", "vision_encoder"]


def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its projector in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = LlavaConfig.from_pretrained(folder)
    return loaded(TowerEncoder(config, LlavaMultiModalProjector(config)), checkpoint)


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes in addition to the tokens."""
    return {"pixel_values": torch.from_numpy(np.stack(probe.picture.views))}


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    found = model.get_image_features(inputs["pixel_values"], return_dict=True)
    return torch.cat(tuple(found.pooler_output))
