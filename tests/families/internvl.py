"""InternVL3: tiles of the nearest shape, the whole picture behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def _processor(folder: Path) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    # InternVLProcessor has it cut tiles, whatever the file says.
    return GotOcr2ImageProcessorPil(**settings | {"crop_to_patches": True})


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    return {"pixel_values": _processor(folder)(images=[image], return_tensors="np")["pixel_values"]}


def token_ids(folder: Path, question: str, image: Image.Image, spec: ModelSpec) -> list[int]:
    """InternVLProcessor needs a video processor, which needs torchvision: its placeholder is filled in here."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    (tiles,) = _processor(folder)(images=[image])["num_patches"]
    length = json.loads((folder / "processor_config.json").read_text())["image_seq_length"]
    shown = f"<img>{'<IMG_CONTEXT>' * length * tiles}</img>"
    ids: list[int] = tokenizer(text.replace("<IMG_CONTEXT>", shown))["input_ids"]
    return ids


CASE = FamilyCase(
    model_type="internvl",
    processed=processed,
    token_ids=token_ids,
    # One tile; two rows; a row of three and four by three tiles.
    sizes=((32, 32), (40, 80), (96, 32), (400, 300)),
)
