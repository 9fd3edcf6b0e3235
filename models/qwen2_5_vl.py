"""Qwen2.5-VL: as Qwen2-VL, but most layers of the vision encoder look at windows of the picture only.

A window is `window_size` pixels on a side, less at the right and lower edges. The graph gathers the tokens of the
W windows into S places each, the spare ones masked, so that attention costs what the windows cost and not what
the picture would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import MASKED, GraphSpec, TensorSpec
from safecode_trt.errors import CheckpointError
from safecode_trt.models.layout import Layout
from safecode_trt.models.qwen2_vl import Qwen2VLSpec, common_settings
from safecode_trt.models.spec import Array, Floats

__all__ = ["Qwen25VLSpec", "load"]


def load(folder: Path, config: Mapping[str, Any]) -> Qwen25VLSpec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    vision = config.get("vision_config") or {}
    settings = common_settings(folder, config, width=int(vision.get("hidden_size", 3584)))
    pixels, token = int(vision.get("window_size", 112)), settings["grid"].token_size
    if pixels < token:
        raise CheckpointError(
            f"vision_config.window_size is {pixels}; expected at least {token}, the pixels of an image token"
        )
    return Qwen25VLSpec(**settings, window=pixels // token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen25VLSpec(Qwen2VLSpec):
    """The spec of one Qwen2.5-VL checkpoint; `window` is in image tokens on a side."""

    window: int
    model_type: str = "qwen2_5_vl"

    def vision_graph(self, dtype: str) -> GraphSpec:
        graph = Qwen2VLSpec.vision_graph(self, dtype)
        windows = ("P", "W", self.window**2)
        return GraphSpec(
            inputs=(
                *graph.inputs,
                TensorSpec(name="window_index", dtype="int64", shape=windows),
                TensorSpec(name="window_bias", dtype=dtype, shape=windows),
                TensorSpec(name="token_index", dtype="int64", shape=("P", "N")),
            ),
            outputs=graph.outputs,
        )

    def vision_inputs(
        self, views: Sequence[Floats], layout: Layout, words: NDArray[np.int64] | None
    ) -> Mapping[str, Array]:
        return {**Qwen2VLSpec.vision_inputs(self, views, layout, words), **self._windows(layout)}

    def _windows(self, layout: Layout) -> Mapping[str, Array]:
        """Which token stands at each of the windows' places, which places are spare, and where each token stands."""
        side = self.window
        down, along = -layout.rows % side, -layout.columns % side
        tokens = np.arange(layout.tokens, dtype=np.int64).reshape(layout.rows, layout.columns)
        padded = np.pad(tokens, ((0, down), (0, along)), constant_values=-1)
        cut = padded.reshape(padded.shape[0] // side, side, -1, side).transpose(0, 2, 1, 3)
        places = cut.reshape(1, -1, side**2)
        taken = np.flatnonzero(places >= 0)
        token_index = np.empty((1, layout.tokens), np.int64)
        token_index[0, places.flat[taken]] = taken
        return {
            "window_index": np.maximum(places, 0),
            "window_bias": np.where(places < 0, np.float32(MASKED), np.float32(0)),
            "token_index": token_index,
        }
