"""The vision side of LLaVA and its relatives: a tower up to the layers that are looked at, and a projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.weights import load_weights

__all__ = ["TowerEncoder", "loaded"]

PARTS = {"vision_tower": "model.vision_tower.", "multi_modal_projector": "model.multi_modal_projector."}


class TowerEncoder(nn.Module):
    """Square views through a CLIP or SigLIP tower, as `vision_feature_layer` and the select strategy say."""

    def __init__(self, config: Any, projector: nn.Module) -> None:
        super().__init__()
        tower = AutoModel.from_config(config.vision_config, attn_implementation="eager")
        layer, states = config.vision_feature_layer, len(tower.encoder.layers) + 1
        # Hidden state 0 is what goes into the first layer.
        self.states = [i % states for i in ([layer] if isinstance(layer, int) else layer)]
        self.first = 1 if config.vision_feature_select_strategy == "default" else 0
        tower.encoder.layers = tower.encoder.layers[: max(self.states)]
        for unused in {"post_layernorm", "head"} & {name for name, _ in tower.named_children()}:
            delattr(tower, unused)
        self.vision_tower = tower
        self.multi_modal_projector = projector

    def forward(self, pixel_values: Tensor) -> Any:
        hidden = self.vision_tower.embeddings(pixel_values)
        if hasattr(self.vision_tower, "pre_layrnorm"):
            hidden = self.vision_tower.pre_layrnorm(hidden)
        states = [hidden]
        for layer in self.vision_tower.encoder.layers:
            states.append(layer(states[-1], None))
        seen = torch.cat([states[i][:, self.first :] for i in self.states], dim=-1)
        return self.multi_modal_projector(seen)


def loaded(module: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """The module in float32 with the weights of its tower and its projector.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    load_weights(module.float(), checkpoint, PARTS)
    return module.eval()
