"""InstructBLIP: the image tokens in front of the first token, and a Q-Former that reads the request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def image_processor(folder: Path) -> Any:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))


def inputs(folder: Path, question: str, image: Image.Image) -> dict[str, np.ndarray]:
    """Everything that transformers' processor makes of a question about a picture."""
    from transformers import AutoTokenizer, InstructBlipProcessor

    processor = InstructBlipProcessor(
        image_processor(folder),
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder / "qformer_tokenizer"),
        **json.loads((folder / "processor_config.json").read_text()),
    )
    return dict(processor(images=image, text=question, return_tensors="np"))


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    return {"pixel_values": image_processor(folder)(images=[image], return_tensors="np")["pixel_values"]}


def token_ids(folder: Path, question: str, image: Image.Image, spec: ModelSpec) -> list[int]:
    ids: list[int] = inputs(folder, question, image)["input_ids"][0].tolist()
    return ids


CASE = FamilyCase(model_type="instructblip", processed=processed, token_ids=token_ids)
