"""Idefics2: four quarters and the whole, each of its own shape, as patches with their places in a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The real patches of transformers' canvases, and the positions that its embeddings look up for them."""
    import torch
    from transformers import Idefics2Config
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

    processor = Idefics2ImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    made = processor(images=[image], return_tensors="pt")
    pixels, mask = made["pixel_values"][0], made["pixel_attention_mask"][0]
    config = Idefics2Config.from_pretrained(folder).vision_config
    edge = config.patch_size
    full = mask.unfold(1, edge, edge).unfold(2, edge, edge).sum((-1, -2)) == edge**2
    embeddings, seen = Idefics2VisionEmbeddings(config), []
    embeddings.position_embedding.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    embeddings(pixels, full)
    patches = torch.nn.functional.unfold(pixels, edge, stride=edge).transpose(1, 2).numpy()
    real = full.flatten(1).numpy()
    found = {"pixel_values": patches, "position_ids": seen[0].numpy()}
    return {name: behind_one_another(x, real) for name, x in found.items()}


def behind_one_another(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Each view's real patches without the gaps between them, zeros behind."""
    block = np.zeros((len(values), int(real.sum(1).max()), *values.shape[2:]), values.dtype)
    for target, own, kept in zip(block, values, real, strict=True):
        target[: int(kept.sum())] = own[kept]
    return block


CASE = FamilyCase(model_type="idefics2", processed=processed, sizes=((40, 60), (120, 30), (30, 64)))
