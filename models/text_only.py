"""Families without pictures: a text decoder alone, as transformers' causal language models are.

They differ in their row of `text_config.py` only, so one spec serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safecode_trt.contract import GraphSpec
from safecode_trt.errors import PictureError, PromptError
from safecode_trt.models.layout import Layout
from safecode_trt.models.spec import ModelSpec
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["TextOnlySpec", "load"]

NO_TOKEN = -1
"""The id of no token."""


def load(folder: Path, config: Mapping[str, Any]) -> TextOnlySpec:
    """Reads config.json of a checkpoint or bundle."""
    tied = bool(config.get("tie_word_embeddings"))
    return TextOnlySpec(
        model_type=config["model_type"], text=TextConfig.from_config(config, tie_word_embeddings=tied)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOnlySpec(ModelSpec):
    """The spec of one text-only checkpoint."""

    text_only: ClassVar[bool] = True
    model_type: str
    text: TextConfig
    weights: WeightNames = WeightNames(
        embed_tokens="model.embed_tokens.weight",
        norm="model.norm.weight",
        lm_head="lm_head.weight",
        layer="model.layers.{i}.",
    )
    image_token_id: int = NO_TOKEN
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    rescale_factor: float = 1.0
    resample: int = 0
    max_pictures: int | None = 0

    @property
    def image_placeholder(self) -> None:
        return None

    @property
    def reference_layout(self) -> Layout:
        return Layout(views=(), tokens=0)

    def require_pictures(self, count: int) -> None:
        if count:
            raise PromptError(self._unseen)

    def layout(self, width: int, height: int) -> Layout:
        raise PictureError(self._unseen)

    def image_text(self, layout: Layout) -> str:
        return ""

    @property
    def _unseen(self) -> str:
        return f"{self.model_type} reads text only and sees no picture; ask without one"

    def vision_graph(self, dtype: str) -> GraphSpec:
        return GraphSpec(inputs=(), outputs=())
