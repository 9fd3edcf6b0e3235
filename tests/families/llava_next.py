"""LLaVA-NeXT: tiles of the best resolution, padded and unpadded both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    processor = LlavaNextImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    return {"pixel_values": processor(images=[image], return_tensors="np")["pixel_values"][0]}


CASE = FamilyCase(
    model_type="llava_next",
    processed=processed,
    # 2 x 2 tiles cut on the left and right, one row of three cut above and below, one column of two uncut.
    sizes=((40, 60), (96, 20), (32, 64)),
)
