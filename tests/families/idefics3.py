"""Idefics3: tiles of a split picture, row and column tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    processor = Idefics3ImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    return {"pixel_values": processor(images=[image], return_tensors="np")["pixel_values"][0]}


CASE = FamilyCase(
    model_type="idefics3",
    processed=processed,
    changes={
        "text_config.max_position_embeddings": 512,
        "preprocessor.do_image_splitting": True,
        "preprocessor.size": {"longest_edge": 96},
    },
)
