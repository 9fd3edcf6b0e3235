"""SmolVLM2: tiles of a split picture, row and column tokens, as its own processor writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from safecode_trt.models import ModelSpec
from tests.families import FamilyCase


def pictures(folder: Path, image: Image.Image) -> dict[str, np.ndarray]:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    processor = SmolVLMImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    found: dict[str, np.ndarray] = processor(images=[image], return_row_col_info=True, return_tensors="np")
    return found


def processed(folder: Path, image: Image.Image, spec: ModelSpec) -> dict[str, np.ndarray]:
    return {"pixel_values": pictures(folder, image)["pixel_values"][0]}


def token_ids(folder: Path, question: str, image: Image.Image, spec: ModelSpec) -> list[int]:
    """Its processor wants a video processor, and that torchvision: only the text that it writes is taken from it."""
    from transformers import AutoTokenizer
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    settings = json.loads((folder / "processor_config.json").read_text())
    (rows,), (columns,) = (pictures(folder, image)[axis] for axis in ("rows", "cols"))
    shown = get_image_prompt_string(
        rows[0],
        columns[0],
        settings["image_seq_len"],
        fake_token_around_image="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text.replace("<image>", shown))["input_ids"]
    return ids


CASE = FamilyCase(
    model_type="smolvlm",
    processed=processed,
    token_ids=token_ids,
    changes={"preprocessor.size": {"longest_edge": 96}, "text_config.max_position_embeddings": 512},
)
