"""Idefics3: the vision side as a traceable module, and what transformers calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector, Idefics3VisionTransformer

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.weights import load_weights
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = ["VisionEncoder", "image_features", "loaded", "model_inputs", "vision_encoder"]

PARTS = {"vision_model": "model.vision_model.", "connector": "model.connector."}


class VisionEncoder(nn.Module):
    """Square pictures that fill the encoder's grid: no padding, so positions are constants."""

    vision_model: Any
    positions: Tensor

    def __init__(self, vision_model: Any, connector: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.connector = vision_model, connector

    def fix_positions(self) -> None:
        """Keeps the position embeddings (1, patches, width) that the module itself gives to a full grid."""
        embeddings = self.vision_model.embeddings
        seen: list[Tensor] = []
        hook = embeddings.position_embedding.register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0])
        )
        side, channels = embeddings.num_patches_per_side, embeddings.patch_embedding.in_channels
        picture = torch.zeros(1, channels, embeddings.image_size, embeddings.image_size)
        embeddings(picture, torch.ones(1, side, side, dtype=torch.bool))
        hook.remove()
        self.register_buffer("positions", embeddings.position_embedding(seen[0]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = patches + self.positions
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden, None)
        features: Tensor = self.connector(self.vision_model.post_layernorm(hidden))
        return features


def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its projector in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = Idefics3Config.from_pretrained(folder)
    tower = Idefics3VisionTransformer._from_config(config.vision_config, attn_implementation="eager")
    return loaded(VisionEncoder(tower, Idefics3Connector(config)), checkpoint)


@torch.no_grad()
def loaded(module: VisionEncoder, checkpoint: Checkpoint) -> nn.Module:
    """The module in float32 with its weights.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    load_weights(module.float(), checkpoint, PARTS)
    module.fix_positions()
    return module.eval()


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes in addition to the tokens."""
    return {"pixel_values": torch.from_numpy(np.stack(probe.picture.views))[None]}


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    found = model.get_image_features(inputs["pixel_values"], return_dict=True)
    features: Tensor = torch.cat(tuple(found.pooler_output))
    return features.reshape(-1, features.shape[-1])
