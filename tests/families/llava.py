"""LLaVA-1.5: one view, resized and cut as CLIP's processor does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    return {"pixel_values": processor(images=[image], return_tensors="np")["pixel_values"]}


CASE = FamilyCase(model_type="llava", processed=processed)
