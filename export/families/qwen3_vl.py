"""Qwen3-VL: the vision side of Qwen2-VL with a table of positions, and features from several layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

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
    """Returns the image features, and those of the DeepStack layers in the order of the decoder's."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual

    def forward(
        self,
        pixel_values: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
        position_index: Tensor,
        position_weight: Tensor,
    ) -> tuple[Tensor, ...]:
        visual = self.visual
        hidden = embed_patches(visual.patch_embed.proj, pixel_values)
        hidden = hidden + (visual.pos_embed(position_index) * position_weight.unsqueeze(-1)).sum(-2)
        layers = list(visual.deepstack_visual_indexes)
        found = {}
        for number, block in enumerate(visual.blocks):
            qkv = block.attn.qkv(block.norm1(hidden))
            hidden = hidden + block.attn.proj(mix(block.attn, qkv, rotary_cos, rotary_sin))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if number in layers:
                place = layers.index(number)
                found[place] = merge_patches(visual.deepstack_merger_list[place], hidden)
        # In the order in which the layers come, which is how transformers hands them on.
        return (merge_patches(visual.merger, hidden), *found.values())


@torch.no_grad()
def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    config = Qwen3VLConfig.from_pretrained(folder).vision_config
    module = VisionEncoder(Qwen3VLVisionModel._from_config(config)).float()
    load_weights(module, checkpoint, PARTS)
    return module.eval()
