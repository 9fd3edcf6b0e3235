"""Idefics2: the vision side as a traceable module, and what transformers calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Idefics2Config
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector, Idefics2VisionTransformer

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.weights import load_weights
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = ["VisionEncoder", "image_features", "model_inputs", "vision_encoder"]

PARTS = {"vision_model": "model.vision_model.", "connector": "model.connector."}


class VisionEncoder(nn.Module):
    """Views as patches, each with its place in the table of positions and what attention adds to it."""

    def __init__(self, config: Idefics2Config) -> None:
        super().__init__()
        config.perceiver_config._attn_implementation = "eager"
        self.vision_model: Any = Idefics2VisionTransformer._from_config(
            config.vision_config, attn_implementation="eager"
        )
        self.connector: Any = Idefics2Connector(config)

    def forward(self, pixel_values: Tensor, position_ids: Tensor, patch_bias: Tensor) -> Tensor:
        embeddings, resampler = self.vision_model.embeddings, self.connector.perceiver_resampler
        convolution, bias = embeddings.patch_embedding, patch_bias[:, None, None]
        hidden = nn.functional.linear(pixel_values, convolution.weight.flatten(1), convolution.bias)
        hidden = hidden + embeddings.position_embedding(position_ids)
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden, bias)
        context = self.connector.modality_projection(self.vision_model.post_layernorm(hidden))
        latents = resampler.latents.expand(context.shape[0], -1, -1)
        # The latents look at the patches and at one another.
        bias = nn.functional.pad(bias, (0, resampler.n_latents))
        for layer in resampler.layers:
            latents = layer(latents, context, attention_mask=bias)
        features: Tensor = resampler.norm(latents)
        return features


def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its perceiver in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    module = VisionEncoder(Idefics2Config.from_pretrained(folder)).float()
    load_weights(module, checkpoint, PARTS)
    return module.eval()


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes in addition to the tokens: views on one canvas, and where they are on it."""
    views = probe.picture.views
    canvas = len(views), max(view.shape[1] for view in views), max(view.shape[2] for view in views)
    pixel_values = np.zeros((canvas[0], 3, *canvas[1:]), np.float32)
    mask = np.zeros(canvas, np.int64)
    for i, view in enumerate(views):
        _, height, width = view.shape
        pixel_values[i, :, :height, :width] = view
        mask[i, :height, :width] = 1
    found = {"pixel_values": pixel_values, "pixel_attention_mask": mask}
    return {name: torch.from_numpy(x)[None] for name, x in found.items()}


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    found = model.get_image_features(
        inputs["pixel_values"], pixel_attention_mask=inputs["pixel_attention_mask"], return_dict=True
    )
    return torch.cat(tuple(found.pooler_output))
