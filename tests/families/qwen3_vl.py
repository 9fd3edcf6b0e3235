"""Qwen3-VL: Qwen2-VL with a stretched table of positions and features behind the first layers of the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase
from tests.families.qwen2_vl import processed as patches
from tests.families.qwen2_vl import rotary, token_ids


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The patches, and which entries of the table of 6 x 6 positions they lie between."""
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    layout = spec.layout(*image.size)
    index, weight = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, layout.rows * 2, layout.columns * 2]]),
        num_grid_per_side=6,
        align_corners=True,
        spatial_merge_size=2,
    )
    shape = (1, layout.tokens, 4, 4)
    table = {"position_index": index.reshape(shape).numpy(), "position_weight": weight.reshape(shape).numpy()}
    return {**patches(folder, image, spec), **table}


CASE = FamilyCase(
    model_type="qwen3_vl",
    processed=processed,
    token_ids=token_ids,
    rotary=rotary,
    sizes=((60, 100), (110, 50)),
)
