"""Idefics: CLIP-like encoder, perceiver and the cross layers' keys and values as a module that can be traced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsRMSNorm
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics.vision import IdeficsVisionTransformer

from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.families.weights import load_weights
from safecode_trt.export.probes import Probe
from safecode_trt.models import ModelSpec

__all__ = ["VisionEncoder", "image_features", "model_inputs", "vision_encoder"]


class Projections(nn.Module):
    """What one cross layer makes of the latents: keys, which may be normalised, and values."""

    def __init__(self, config: IdeficsConfig) -> None:
        super().__init__()
        width, latents = config.hidden_size, config.vision_config.embed_dim
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(latents, width, bias=False)
        self.v_proj = nn.Linear(latents, width, bias=False)
        if config.qk_layer_norms:
            self.k_layer_norm = IdeficsRMSNorm(width // self.heads, eps=config.rms_norm_eps)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        key, value = (
            projection(latents).unflatten(-1, (self.heads, -1)) for projection in (self.k_proj, self.v_proj)
        )
        return (self.k_layer_norm(key) if hasattr(self, "k_layer_norm") else key), value


class VisionEncoder(nn.Module):
    """Square pictures to the keys and values (P, S, H, D) of every cross layer."""

    def __init__(self, config: IdeficsConfig) -> None:
        super().__init__()
        config.vision_config._attn_implementation = "eager"
        self.vision_model = IdeficsVisionTransformer(config.vision_config)
        if config.use_resampler:
            perceiver = config.perceiver_config
            self.perceiver_resampler = IdeficsPerceiverResampler(
                config,
                config.vision_config.embed_dim,
                perceiver.resampler_depth,
                perceiver.resampler_n_heads,
                perceiver.resampler_head_dim,
                perceiver.resampler_n_latents,
            )
        layers = config.num_hidden_layers // config.cross_layer_interval
        self.cross_layers = nn.ModuleList(Projections(config) for _ in range(layers))

    def parts(self) -> dict[str, str]:
        """Where the checkpoint has the parameters of each submodule."""
        cross = {
            f"cross_layers.{j}": f"model.gated_cross_attn_layers.{j}.cross_attn."
            for j in range(len(self.cross_layers))
        }
        whole = {name: f"model.{name}." for name, _ in self.named_children() if name != "cross_layers"}
        return whole | cross

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        latents = self.vision_model(pixel_values).last_hidden_state
        if hasattr(self, "perceiver_resampler"):
            latents = self.perceiver_resampler(latents)
        return tuple(made for layer in self.cross_layers for made in layer(latents))


@torch.no_grad()
def vision_encoder(folder: Path, checkpoint: Checkpoint) -> nn.Module:
    """The vision side up to the keys and values, in float32; of the decoder nothing else is read.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    module = VisionEncoder(IdeficsConfig.from_pretrained(folder)).float()
    load_weights(module, checkpoint, module.parts())
    return module.eval()


def model_inputs(spec: ModelSpec, probe: Probe, token_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes in addition to the tokens: those from the picture on see it."""
    seen = (token_ids == spec.image_token_id).cumsum(-1) > 0
    return {
        "pixel_values": torch.from_numpy(np.stack(probe.picture.views))[None],
        "image_attention_mask": seen[..., None].long(),
    }


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values (S, H, D) of one picture, caught where transformers' cross layers compute them."""
    found: dict[str, Tensor] = {}
    hooks = []
    for j, layer in enumerate(model.model.gated_cross_attn_layers):
        attention = layer.cross_attn
        keys = attention.k_layer_norm if attention.qk_layer_norms else attention.k_proj
        for name, module in ((f"cross_key.{j}", keys), (f"cross_value.{j}", attention.v_proj)):
            hooks.append(module.register_forward_hook(partial(_keep, found, name, attention.head_dim)))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def _keep(
    found: dict[str, Tensor], name: str, head_dim: int, module: Any, inputs: Any, output: Tensor
) -> None:
    """Keeps what a module has put out: (1, H, S, D), or (1, S, H * D) where the heads are not apart yet."""
    found[name] = output[0].transpose(0, 1) if output.dim() == 4 else output[0].unflatten(-1, (-1, head_dim))
