"""InstructBLIP: the vision side as a traceable module, and what transformers calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
)

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.weights import load_weights
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = ["VisionEncoder", "image_features", "model_inputs", "vision_encoder"]


class VisionEncoder(nn.Module):
    """One square picture and one request for each row, all requests of the same length: nothing is masked."""

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__()
        wide, eager = config.qformer_config.hidden_size, "eager"
        self.vision_model = InstructBlipVisionModel._from_config(
            config.vision_config, attn_implementation=eager
        )
        self.qformer = InstructBlipQFormerModel._from_config(config.qformer_config, attn_implementation=eager)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, wide))
        self.language_projection = nn.Linear(wide, config.text_config.hidden_size)

    def forward(self, pixel_values: Tensor, qformer_input_ids: Tensor) -> Tensor:
        seen = self.vision_model.embeddings(pixel_values)
        for layer in self.vision_model.encoder.layers:
            seen = layer(seen)
        seen = self.vision_model.post_layernorm(seen)
        words = self.qformer.embeddings
        # Counted here: transformers cuts them from a table, which would fix the longest request in the graph.
        positions = torch.arange(qformer_input_ids.shape[1], device=qformer_input_ids.device)[None]
        queries = self.query_tokens.expand(pixel_values.shape[0], -1, -1)
        hidden = words(qformer_input_ids, position_ids=positions, query_embeds=queries)
        count = self.query_tokens.shape[1]
        for layer in self.qformer.encoder.layer:
            hidden = layer(hidden, encoder_hidden_states=seen, query_length=count)
        features: Tensor = self.language_projection(hidden[:, :count])
        return features


@torch.no_grad()
def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """Encoder, Q-Former and projection in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    module = VisionEncoder(InstructBlipConfig.from_pretrained(folder)).float()
    load_weights(module, checkpoint, {"": ""})  # the module's names are the checkpoint's
    return module.eval()


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes in addition to the tokens."""
    inputs = spec.vision_inputs(probe.picture.views, probe.picture.layout, probe.picture.words)
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    pixels, words = inputs["pixel_values"], inputs["qformer_input_ids"]
    features: Tensor = model.get_image_features(pixels, words, return_dict=True).pooler_output
    return features.reshape(-1, features.shape[-1])
