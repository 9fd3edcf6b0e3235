"""Qwen2-VL: pictures at their own size, four patches merged into an image token, positions of three axes.

The vision encoder looks at a whole picture in every layer. Its rotary tables come with the pixels, so that one
graph takes pictures of every shape; N is a picture's number of image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout
from safecode_trt.models.patches import PatchGrid, multimodal_positions, pixel_limits
from safecode_trt.models.pixels import pixel_fields
from safecode_trt.models.spec import Array, Floats, ModelSpec, read_preprocessor
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["Qwen2VLSpec", "common_settings", "load"]

IMAGE = "<|image_pad|>"
# No side is a multiple of a window's: what is tested on it has windows that are not full.
REFERENCE_ROWS, REFERENCE_COLUMNS = 6, 10
# What `max_tiles` counts: so many image tokens, the area of 16 x 16, though nothing is cut.
TILE_TOKENS = 256
# How the files on the hub call what transformers has in memory; the first that fits counts.
HUB_NAMES = (
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("visual.", "model.visual."),
)


def load(folder: Path, config: Mapping[str, Any]) -> Qwen2VLSpec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    vision = config.get("vision_config") or {}
    width = int(vision.get("embed_dim", 1280))
    return Qwen2VLSpec(**common_settings(folder, config, width=width))


def common_settings(
    folder: Path, config: Mapping[str, Any], *, width: int, patch_size: int = 14
) -> dict[str, Any]:
    """What Qwen2-VL and its successors say alike, as keywords of their specs.

    `width` is that of the vision encoder, `patch_size` what a silent `vision_config` has. The decoder's keys
    stand at the top of config.json or, as newer files have it, in its text_config.

    Raises:
        CheckpointError: a value is unusable, or the files do not fit each other.
    """
    preprocessor = read_preprocessor(folder)
    vision, text = config.get("vision_config") or {}, config.get("text_config") or config
    heads = int(vision.get("num_heads", 16))
    if width % heads or width // heads % 4:
        raise CheckpointError(
            f"vision_config: {width} values in {heads} heads; expected a multiple of 4 in each head"
        )
    low, high = pixel_limits(preprocessor)
    tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    return {
        "text": TextConfig.from_config(
            text, tie_word_embeddings=bool(tied), model_type=f"{config['model_type']}_text"
        ),
        "image_token_id": int(config.get("image_token_id", 151655)),
        **pixel_fields(preprocessor),
        "grid": PatchGrid.from_config(vision, preprocessor, patch_size=patch_size),
        "min_pixels": low,
        "max_pixels": high,
        "vision_head_dim": width // heads,
        "vision_rope_theta": float((vision.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2VLSpec(ModelSpec):
    """The spec of one Qwen2-VL checkpoint."""

    text: TextConfig
    image_token_id: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    grid: PatchGrid
    min_pixels: int
    max_pixels: int
    vision_head_dim: int
    vision_rope_theta: float
    max_tiles: int | None = None
    model_type: str = "qwen2_vl"
    renames: tuple[tuple[str, str], ...] = HUB_NAMES
    weights: WeightNames = WeightNames(
        embed_tokens="model.language_model.embed_tokens.weight",
        norm="model.language_model.norm.weight",
        lm_head="lm_head.weight",
        layer="model.language_model.layers.{i}.",
    )

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    def image_text(self, layout: Layout) -> str:
        return IMAGE * layout.tokens

    @property
    def reference_layout(self) -> Layout:
        return self.grid.layout(REFERENCE_ROWS, REFERENCE_COLUMNS)

    def layout(self, width: int, height: int) -> Layout:
        return self.grid.fitted(width, height, self.min_pixels, self.max_pixels)

    def with_max_tiles(self, max_tiles: int) -> Qwen2VLSpec:
        """At most 256 image tokens for each tile and as many for the whole, by fewer pixels: nothing is cut here."""
        most = min((max_tiles + 1) * TILE_TOKENS * self.grid.token_size**2, self.max_pixels)
        return replace(self, max_tiles=max_tiles, max_pixels=most, min_pixels=min(self.min_pixels, most))

    def vision_graph(self, dtype: str) -> GraphSpec:
        """P pictures of N image tokens each, with the rotary tables of the encoder's heads."""
        tokens, turns = ("P", "N", self.grid.patches), self.vision_head_dim // 2
        return GraphSpec(
            inputs=(
                TensorSpec(name="pixel_values", dtype=dtype, shape=(*tokens, self.grid.values)),
                TensorSpec(name="rotary_cos", dtype=dtype, shape=(*tokens, turns)),
                TensorSpec(name="rotary_sin", dtype=dtype, shape=(*tokens, turns)),
            ),
            outputs=(
                TensorSpec(name="image_features", dtype=dtype, shape=("P", "N", self.text.hidden_size)),
            ),
        )

    def vision_inputs(
        self, views: Sequence[Floats], layout: Layout, words: NDArray[np.int64] | None
    ) -> Mapping[str, Array]:
        tables = self.grid.rotary(layout, self.vision_head_dim, self.vision_rope_theta)
        inputs = {"pixel_values": self.grid.pixel_values(views[0]), **tables}
        return {name: x[None] for name, x in inputs.items()}

    def positions(self, token_ids: NDArray[np.int64], layouts: Sequence[Layout]) -> NDArray[np.int64]:
        grids = [(layout.rows, layout.columns) for layout in layouts]
        return multimodal_positions(token_ids == self.image_token_id, grids)
