"""Qwen2-VL: the vision side as a traceable module, and what transformers calls its inputs.

Its successors share the functions here. Hidden states are (P, N, patches of a token, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.weights import load_weights
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = [
    "PARTS",
    "VisionEncoder",
    "embed_patches",
    "image_features",
    "merge_patches",
    "mix",
    "model_inputs",
    "vision_encoder",
]

PARTS = {"visual": "model.visual."}


class VisionEncoder(nn.Module):
    """Every layer looks at the whole picture."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual

    def forward(self, pixel_values: Tensor, rotary_cos: Tensor, rotary_sin: Tensor) -> Tensor:
        hidden = embed_patches(self.visual.patch_embed.proj, pixel_values)
        for block in self.visual.blocks:
            qkv = block.attn.qkv(block.norm1(hidden))
            hidden = hidden + block.attn.proj(mix(block.attn, qkv, rotary_cos, rotary_sin))
            hidden = hidden + block.mlp(block.norm2(hidden))
        return merge_patches(self.visual.merger, hidden)


def embed_patches(projection: nn.Conv3d, pixel_values: Tensor) -> Tensor:
    """A convolution whose kernel is as large as its input is a product with the flattened kernel."""
    return nn.functional.linear(pixel_values, projection.weight.flatten(1), projection.bias)


def mix(attention: Any, qkv: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None = None) -> Tensor:
    """Values mixed by attention among all patches of axes 1 and 2, in the shape of the queries.

    `qkv` (P, N, patches, 3 * width) are queries, keys and values; `bias` is added to the scores (P, heads,
    queries, keys).
    """
    parts = qkv.flatten(1, 2).unflatten(-1, (3, attention.num_heads, -1))
    cos, sin = (table.flatten(1, 2).unsqueeze(2) for table in (cos, sin))
    query, key = (_rotate(parts[:, :, part], cos, sin) for part in (0, 1))
    # Scaled before the product, which float16 could not hold otherwise.
    scores = (query * attention.scaling).transpose(1, 2) @ key.permute(0, 2, 3, 1)
    scores = scores if bias is None else scores + bias
    mixed = scores.softmax(-1) @ parts[:, :, 2].transpose(1, 2)
    return mixed.transpose(1, 2).reshape(*qkv.shape[:3], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs that the two halves of x make; the tables hold an angle for each."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def merge_patches(merger: Any, hidden: Tensor) -> Tensor:
    """The patches of each token through the merger that ends the encoder: (P, N, E)."""
    merged: Tensor = merger(hidden)
    return merged.reshape(*hidden.shape[:2], -1)


@torch.no_grad()
def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = Qwen2VLConfig.from_pretrained(folder).vision_config
    module = VisionEncoder(Qwen2VisionTransformerPretrainedModel._from_config(config)).float()
    load_weights(module, checkpoint, PARTS)
    return module.eval()


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes besides tokens: packed patches, the grid, and which tokens are a picture's."""
    layout = probe.picture.layout
    pixels = spec.vision_inputs(probe.picture.views, layout, None)["pixel_values"][0]
    side = int(np.sqrt(pixels.shape[1]))
    return {
        "pixel_values": torch.from_numpy(pixels).flatten(0, 1),
        "image_grid_thw": torch.tensor([[1, layout.rows * side, layout.columns * side]]),
        "mm_token_type_ids": (token_ids == spec.image_token_id).long(),
    }


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    found = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    return torch.cat(tuple(found.pooler_output))
