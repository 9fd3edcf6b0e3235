"""Idefics3: the vision side as a module that can be traced, and the whole model to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector, Idefics3VisionTransformer

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.probes import Probe
from safecode_trt.export.quiet import quiet

__all__ = ["Reference", "VisionEncoder", "reference_model", "vision_encoder"]

PARTS = {"vision_model": "model.vision_model.", "connector": "model.connector."}


class VisionEncoder(nn.Module):
    """Square pictures that fill the encoder's grid: no padding, so positions are constants."""

    positions: Tensor

    def __init__(self, config: Idefics3Config) -> None:
        super().__init__()
        self.vision_model = Idefics3VisionTransformer._from_config(
            config.vision_config, attn_implementation="eager"
        )
        self.connector = Idefics3Connector(config)

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


@torch.no_grad()
def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision encoder with its projector in float32; the decoder's weights are not read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    module = VisionEncoder(Idefics3Config.from_pretrained(folder)).float()
    for part, prefix in PARTS.items():
        for name, parameter in module.get_submodule(part).named_parameters():
            parameter.copy_(torch.from_numpy(checkpoint.get(prefix + name, tuple(parameter.shape))))
    module.fix_positions()
    return module.eval()


class Reference:
    """The whole checkpoint in float32; see `parity.ReferenceModel`."""

    def __init__(self, folder: Path) -> None:
        with quiet():
            model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()

    @torch.no_grad()
    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        # All pictures as those of one sample, whose features come as one list.
        found = self._model.get_image_features(torch.from_numpy(pixel_values)[None], return_dict=True)
        (features,) = found.pooler_output
        count, width = len(pixel_values), features.shape[-1]
        split: NDArray[np.float32] = features.reshape(count, -1, width).numpy()
        return split

    @torch.no_grad()
    def greedy(self, probe: Probe, count: int, ends: Sequence[int]) -> tuple[int, ...]:
        inputs: dict[str, Any] = _inputs(probe, ())
        reply: list[int] = []
        while len(reply) < count and (not reply or reply[-1] not in ends):
            found = self._model(**inputs, use_cache=True, logits_to_keep=1)
            reply.append(int(found.logits[0, -1].argmax()))
            inputs = {"input_ids": torch.tensor([reply[-1:]]), "past_key_values": found.past_key_values}
        return tuple(reply)

    @torch.no_grad()
    def logits(self, probe: Probe, reply: Sequence[int]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._model(**_inputs(probe, reply)).logits[0].numpy()
        return logits


def reference_model(folder: Path) -> Reference:
    """The checkpoint as transformers runs it."""
    return Reference(folder)


def _inputs(probe: Probe, reply: Sequence[int]) -> dict[str, Tensor]:
    token_ids = np.append(probe.token_ids, reply).astype(np.int64)
    return {
        "input_ids": torch.from_numpy(token_ids)[None],
        "pixel_values": torch.from_numpy(probe.pixel_values)[None],
    }
