"""Fills a torch module from a checkpoint, part by part; nothing else of the checkpoint is read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from safecode_trt.export.checkpoint import Checkpoint

__all__ = ["load_weights"]


@torch.no_grad()
def load_weights(module: nn.Module, checkpoint: Checkpoint, parts: Mapping[str, str]) -> None:
    """Copies every parameter of each submodule from the tensors whose names begin as `parts` says.

    Raises:
        CheckpointError: a tensor is missing, or has another shape than config.json makes it.
    """
    for part, prefix in parts.items():
        for name, parameter in module.get_submodule(part).named_parameters():
            parameter.copy_(torch.from_numpy(checkpoint.get(prefix + name, tuple(parameter.shape))))
