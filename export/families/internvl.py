"""InternVL: the vision side as a traceable module, and what transformers calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.clip_tower import loaded
from safecode_trt.export.families.llava import model_inputs

__all__ = ["VisionEncoder", "image_features", "model_inputs", "vision_encoder"]


class VisionEncoder(nn.Module):
    """Tiles through the tower; squares of neighbouring patches become one feature each."""

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        tower = InternVLVisionModel._from_config(config.vision_config, attn_implementation="eager")
        self.layer = int(config.vision_feature_layer)
        layers = tower.encoder.layer
        # Hidden state 0 is what goes into the first layer; -1 alone is the normalised one.
        tower.encoder.layer = layers[: self.layer % (len(layers) + 1)]
        if self.layer != -1:
            tower.layernorm = nn.Identity()
        self.vision_tower = tower
        self.multi_modal_projector = InternVLMultiModalProjector(config)
        self.side = tower.embeddings.patch_embeddings.patch_shape[0]
        self.shuffled = int(1 / config.downsample_ratio)

    def forward(self, pixel_values: Tensor) -> Any:
        hidden = self.vision_tower.embeddings(pixel_values)
        for layer in self.vision_tower.encoder.layer:
            hidden = layer(hidden)
        patches = self.vision_tower.layernorm(hidden)[:, 1:]
        near, far = self.shuffled, self.side // self.shuffled
        squares = patches.reshape(-1, far, near, far, near, patches.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return self.multi_modal_projector(squares.reshape(-1, far * far, near * near * patches.shape[-1]))


def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its projector in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    return loaded(VisionEncoder(InternVLConfig.from_pretrained(folder)), checkpoint)


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features (tokens, E) as transformers computes them."""
    found: Tensor = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    return found.reshape(-1, found.shape[-1])
