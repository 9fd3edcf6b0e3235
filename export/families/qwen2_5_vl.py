"""Qwen2.5-VL: the vision side of Qwen2-VL with attention in windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.qwen2_vl import (
    PARTS,
    embed_patches,
    image_features,
    merge_patches,
    mix,
    model_inputs,
)
from safecode_trt.export.families.weights import load_weights

__all__ = ["VisionEncoder", "image_features", "model_inputs", "vision_encoder"]


class VisionEncoder(nn.Module):
    """The layers `full` look at the whole picture, the others at the windows."""

    def __init__(self, visual: nn.Module, full: Sequence[int]) -> None:
        super().__init__()
        self.visual: Any = visual
        self.full = frozenset(full)

    def forward(
        self,
        pixel_values: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
        window_index: Tensor,
        window_bias: Tensor,
        token_index: Tensor,
    ) -> Tensor:
        window_cos, window_sin = (
            _take(table, window_index).flatten(0, 1) for table in (rotary_cos, rotary_sin)
        )
        hidden = embed_patches(self.visual.patch_embed.proj, pixel_values)
        # A place has as many patches as a token: (P * W, heads, queries, keys).
        bias = window_bias.unsqueeze(-1).expand(-1, -1, -1, hidden.shape[2])
        bias = bias.flatten(2).flatten(0, 1)[:, None, None]
        for number, block in enumerate(self.visual.blocks):
            qkv = block.attn.qkv(block.norm1(hidden))
            if number in self.full:
                mixed = mix(block.attn, qkv, rotary_cos, rotary_sin)
            else:
                windows = _take(qkv, window_index).flatten(0, 1)
                inside = mix(block.attn, windows, window_cos, window_sin, bias)
                places = inside.unflatten(0, window_index.shape[:2]).flatten(1, 2)
                mixed = _take(places, token_index)
            hidden = hidden + block.attn.proj(mixed)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return merge_patches(self.visual.merger, hidden)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (P, n, ...) at each picture's own places (P, ...)."""
    first = torch.arange(x.shape[0]) * x.shape[1]
    places = index.flatten(1) + first[:, None]
    return x.flatten(0, 1)[places.flatten()].unflatten(0, index.shape)


@torch.no_grad()
def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = Qwen2_5_VLConfig.from_pretrained(folder).vision_config
    visual = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    module = VisionEncoder(visual, config.fullatt_block_indexes).float()
    load_weights(module, checkpoint, PARTS)
    return module.eval()
