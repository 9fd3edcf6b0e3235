"""InstructBLIP: EVA-like encoder, a Q-Former that reads the request too, Llama (Vicuna) decoder.

A picture is squashed to a square and becomes as many image tokens as the Q-Former has queries. They stand in front
of the whole prompt, even of its first token; there is no chat template (the layout of InstructBlipProcessor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec, TensorSpec, square_vision_graph
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout, View
from safecode_trt.models.pixels import pixel_fields
from safecode_trt.models.spec import ModelSpec, added_tokens, read_preprocessor
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["InstructBlipSpec", "load"]

IMAGE, END = "<image>", "</s>"
# The turns of a conversation line by line; a single request is itself.
PLAIN_TURNS = (
    "{% for message in messages %}{{ '' if loop.first else '\n' }}"
    "{% for part in message['content'] %}"
    "{{ '" + IMAGE + "' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}"
)


def load(folder: Path, config: Mapping[str, Any]) -> InstructBlipSpec:
    """Reads config.json, the image processor's settings and the added tokens of a checkpoint or bundle."""
    preprocessor = read_preprocessor(folder)
    vision, qformer, text = (config.get(f"{part}_config") or {} for part in ("vision", "qformer", "text"))
    if text.get("model_type") == "t5":
        raise CheckpointError(
            f"{folder}: the language model is a Flan-T5, which has an encoder of its own; only decoder-only "
            "language models are supported, such as the Vicuna of instructblip-vicuna-7b"
        )
    image_token_id = config.get("image_token_index")
    if not isinstance(image_token_id, int):
        raise CheckpointError(
            f"{folder}: config.json has no image_token_index; checkpoints of transformers 4.46 and older lack it"
        )
    image_size = int(vision.get("image_size", 224))
    size = preprocessor.get("size", {"height": 384, "width": 384})
    if size != {"height": image_size, "width": image_size}:
        raise CheckpointError(
            f"{folder}: the image processor's size is {size}, but vision_config.image_size is {image_size}; "
            "expected them to be equal"
        )
    return InstructBlipSpec(
        # transformers' own default, which is not supported.
        text=TextConfig.from_config(
            text, tie_word_embeddings=bool(text.get("tie_word_embeddings", False)), model_type="opt"
        ),
        image_token_id=image_token_id,
        # Vicuna's text_config may name the ends of an older tokenizer.
        end_token_ids=tuple(number for token, number in added_tokens(folder).items() if token == END),
        image_seq_len=int(config.get("num_query_tokens", 32)),
        image_size=image_size,
        **pixel_fields(preprocessor),
        max_words=int(qformer.get("max_position_embeddings", 512)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructBlipSpec(ModelSpec):
    """The spec of one InstructBLIP checkpoint."""

    text: TextConfig
    image_token_id: int
    end_token_ids: tuple[int, ...]
    image_seq_len: int
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    max_words: int
    model_type: str = "instructblip"
    chat_template: str = PLAIN_TURNS
    words_tokenizer: str = "qformer_tokenizer/tokenizer.json"
    max_pictures: int = 1
    pictures_first: bool = True
    weights: WeightNames = WeightNames(
        embed_tokens="language_model.model.embed_tokens.weight",
        norm="language_model.model.norm.weight",
        lm_head="language_model.lm_head.weight",
        layer="language_model.model.layers.{i}.",
    )

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    @property
    def reference_layout(self) -> Layout:
        return self.layout(self.image_size, self.image_size)

    def layout(self, width: int, height: int) -> Layout:
        whole = View(resizes=((self.image_size, self.image_size),))
        return Layout(views=(whole,), tokens=self.image_seq_len)

    def image_text(self, layout: Layout) -> str:
        return IMAGE * layout.tokens

    def vision_graph(self, dtype: str) -> GraphSpec:
        """The square picture and the request: W words of each, so that only requests of one length share a call."""
        picture = square_vision_graph(self.image_size, self.image_seq_len, self.text.hidden_size, dtype)
        words = TensorSpec(name="qformer_input_ids", dtype="int64", shape=("P", "W"))
        return GraphSpec(inputs=(*picture.inputs, words), outputs=picture.outputs)

    def vision_inputs(
        self, views: Sequence[NDArray[np.float32]], layout: Layout, words: NDArray[np.int64] | None
    ) -> Mapping[str, NDArray[Any]]:
        if words is None:
            raise ValueError("the Q-Former needs the request's words")
        return {"pixel_values": np.stack(views), "qformer_input_ids": words[None]}
