"""Qwen2-VL: pictures of any shape, positions of three axes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import Layout, ModelSpec
from tests.families import FamilyCase


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    found = processor(images=[image], return_tensors="np")
    layout = spec.layout(*image.size)
    assert found["image_grid_thw"].tolist() == [[1, layout.rows * 2, layout.columns * 2]]
    return {"pixel_values": found["pixel_values"].reshape(1, layout.tokens, 4, -1)}


def token_ids(folder: Path, question: str, image: Image.Image, spec: ModelSpec) -> list[int]:
    """As transformers' processor does it: the placeholder is repeated in the text, which is then tokenised."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    count = processed(folder, image, spec)["pixel_values"].shape[1]
    ids: list[int] = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count))["input_ids"]
    return ids


def rotary(folder: Path, ids: np.ndarray, layout: Layout) -> np.ndarray:
    """Position ids (3, n) as transformers' model makes them for one picture."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).model
    tokens = torch.from_numpy(ids)[None]
    found, _ = model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == config.image_token_id).long(),
        image_grid_thw=torch.tensor([[1, layout.rows * 2, layout.columns * 2]]),
    )
    positions: np.ndarray = found[:, 0].numpy()
    return positions


CASE = FamilyCase(
    model_type="qwen2_vl",
    processed=processed,
    token_ids=token_ids,
    rotary=rotary,
    sizes=((60, 100), (110, 50)),
)
