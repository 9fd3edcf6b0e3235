"""Qwen3-VL: as Qwen2-VL, with a table of positions in the vision encoder and features for several decoder layers.

The table is a square that is stretched over the picture's patches: numpy says which four of its entries a patch
lies between, and how near. The features of earlier layers of the encoder are added to the image tokens after the
first layers of the decoder (DeepStack, arXiv 2406.04334).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout
from safecode_trt.models.qwen2_vl import Qwen2VLSpec, common_settings
from safecode_trt.models.spec import Array, Features, Floats

__all__ = ["Qwen3VLSpec", "load"]


def load(folder: Path, config: Mapping[str, Any]) -> Qwen3VLSpec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    vision = config.get("vision_config") or {}
    settings = common_settings(folder, config, width=int(vision.get("hidden_size", 1152)), patch_size=16)
    layers, decoder = vision.get("deepstack_visual_indexes", (8, 16, 24)), settings["text"].num_hidden_layers
    if len(layers) > decoder:
        raise CheckpointError(
            f"vision_config.deepstack_visual_indexes has {len(layers)} layers for a decoder of {decoder}; "
            "expected at most one for each"
        )
    side = math.isqrt(int(vision.get("num_position_embeddings", 2304)))
    return Qwen3VLSpec(
        **settings, position_side=side, deepstack=tuple(f"deepstack.{i}" for i in range(len(layers)))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3VLSpec(Qwen2VLSpec):
    """The spec of one Qwen3-VL checkpoint; `deepstack` are the names of the features for the decoder's layers."""

    position_side: int
    deepstack: tuple[str, ...]
    model_type: str = "qwen3_vl"
    renames: tuple[tuple[str, str], ...] = ()

    def vision_graph(self, dtype: str) -> GraphSpec:
        graph, corners = Qwen2VLSpec.vision_graph(self, dtype), ("P", "N", self.grid.patches, 4)
        features = ("P", "N", self.text.hidden_size)
        return GraphSpec(
            inputs=(
                *graph.inputs,
                TensorSpec(name="position_index", dtype="int64", shape=corners),
                TensorSpec(name="position_weight", dtype=dtype, shape=corners),
            ),
            outputs=(
                *graph.outputs,
                *(TensorSpec(name=name, dtype=dtype, shape=features) for name in self.deepstack),
            ),
        )

    def vision_inputs(
        self, views: Sequence[Floats], layout: Layout, words: NDArray[np.int64] | None
    ) -> Mapping[str, Array]:
        return {**Qwen2VLSpec.vision_inputs(self, views, layout, words), **self._corners(layout)}

    def _corners(self, layout: Layout) -> Mapping[str, Array]:
        """The table's entries around every patch (1, N, patches, 4), and their shares in its position."""
        places = self.grid.coordinates(layout)
        side, merged = self.position_side, self.grid.merge_size
        last = np.maximum(np.array([layout.rows, layout.columns]) * merged - 1, 1)
        spot = places.astype(np.float32) * np.float32(side - 1) / last.astype(np.float32)
        before = np.floor(spot)
        beyond = spot - before
        entries = np.minimum(before.astype(np.int64)[..., None] + [0, 1], side - 1)  # (N, patches, 2, 2)
        shares = np.stack([1 - beyond, beyond], -1)
        index = entries[..., 0, :, None] * side + entries[..., 1, None, :]
        weight = shares[..., 0, :, None] * shares[..., 1, None, :]
        flat = (1, layout.tokens, self.grid.patches, 4)
        return {"position_index": index.reshape(flat), "position_weight": weight.reshape(flat)}

    def features(self, outputs: Mapping[str, Floats], layout: Layout) -> Features:
        return {name: found.reshape(-1, found.shape[-1]) for name, found in outputs.items()}

    def decoder_inputs(self, dtype: str) -> tuple[TensorSpec, ...]:
        shape = ("C", "T", self.text.hidden_size)
        return tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name in self.deepstack)

    def token_inputs(self, token_ids: NDArray[np.int64], features: Features) -> Mapping[str, Array]:
        """The features at the image tokens, and nothing anywhere else."""
        found = {}
        places = np.flatnonzero(token_ids == self.image_token_id)
        for name in self.deepstack:
            found[name] = np.zeros((len(token_ids) + 1, self.text.hidden_size), np.float32)
            if len(places) and name in features:
                found[name][places] = features[name]
        return found
