"""What LLaVA and its relatives share: a vision tower that sees square views of one size, and a projector.

Knows how many features a view becomes and where the tensors are; how a picture is cut is each family's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safecode_trt.contract import GraphSpec, square_vision_graph
from safecode_trt.errors import CheckpointError
from safecode_trt.models.pixels import pixel_fields
from safecode_trt.models.spec import ModelSpec
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = ["TowerSpec", "select_features", "side", "tower_fields"]

# LLaVA's vision_config where config.json has none.
VISION: dict[str, Any] = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A vision tower by its model_type: the tokens in front of its patches, and the sizes that it assumes."""

    class_tokens: int
    image_size: int
    patch_size: int


TOWERS = {
    "clip_vision_model": Tower(class_tokens=1, image_size=224, patch_size=32),
    "siglip_vision_model": Tower(class_tokens=0, image_size=224, patch_size=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSpec(ModelSpec):
    """The spec of a checkpoint with such a tower; `image_seq_len` features come out of each view."""

    text: TextConfig
    image_token_id: int
    image_size: int
    image_seq_len: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    resample: int
    weights: WeightNames = WeightNames(
        embed_tokens="model.language_model.embed_tokens.weight",
        norm="model.language_model.norm.weight",
        lm_head="lm_head.weight",
        layer="model.language_model.layers.{i}.",
    )
    renames: tuple[tuple[str, str], ...] = (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("model.vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    )

    def vision_graph(self, dtype: str) -> GraphSpec:
        return square_vision_graph(self.image_size, self.image_seq_len, self.text.hidden_size, dtype)


def tower_fields(
    text: Mapping[str, Any], preprocessor: Mapping[str, Any], *, model_type: str, tie_word_embeddings: bool
) -> dict[str, Any]:
    """The fields of a TowerSpec that are read alike everywhere; `model_type` is a nameless text_config's."""
    return {
        "text": TextConfig.from_config(text, tie_word_embeddings=tie_word_embeddings, model_type=model_type),
        **pixel_fields(preprocessor),
    }


def select_features(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """A tower's image_size, its patches along a side, and the features of a view that LLaVA selects.

    Raises:
        CheckpointError: the tower is none of the known ones, or the selection would drop a patch.
    """
    vision = config.get("vision_config") or VISION
    name = vision.get("model_type", VISION["model_type"])
    if (tower := TOWERS.get(name)) is None:
        raise CheckpointError(
            f"vision_config.model_type {name!r} is not supported; supported: {', '.join(TOWERS)}"
        )
    size = side(vision.get("image_size", tower.image_size), "vision_config.image_size")
    patches = size // side(vision.get("patch_size", tower.patch_size), "vision_config.patch_size")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy == "full":
        return size, patches, patches**2 + tower.class_tokens
    if strategy != "default" or not tower.class_tokens:
        raise CheckpointError(
            f"vision_feature_select_strategy {strategy!r} does not go with a {name}; expected full, "
            "or default where the tower has a class token"
        )
    return size, patches, patches**2


def side(value: object, name: str) -> int:
    """The side of a square that config.json gives as a number, or as two equal ones."""
    sides = value if isinstance(value, list | tuple) and value else [value]
    if not isinstance(sides[0], int) or sides[0] < 1 or any(other != sides[0] for other in sides):
        raise CheckpointError(f"{name} must be a positive integer or a pair of equal ones, got {value!r}")
    return int(sides[0])
