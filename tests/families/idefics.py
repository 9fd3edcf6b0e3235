"""Idefics: a square picture, latents of a perceiver, prompts as its own processor writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def processor_of(folder: Path) -> Any:
    """transformers' processor with its image processor in PIL."""
    from transformers import IdeficsProcessor, PreTrainedTokenizerFast
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return IdeficsProcessor(IdeficsImageProcessorPil(**settings), tokenizer)


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    return {"pixel_values": np.asarray(processor_of(folder).image_processor([image], return_tensors="np"))}


def token_ids(folder: Path, question: str, image: Image.Image, spec: ModelSpec) -> list[int]:
    prompt = ["User:", image, f"{question}<end_of_utterance>", "\nAssistant:"]
    inputs = processor_of(folder)(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")
    ids: list[int] = inputs["input_ids"][0].tolist()
    return ids


CASE = FamilyCase(
    model_type="idefics",
    processed=processed,
    token_ids=token_ids,
    # Four probes: of fewer positions, one near tie of the random weights would be more than 1 %.
    sizes=((40, 60), (64, 30), (32, 32), (70, 50)),
)
