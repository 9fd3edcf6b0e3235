"""A model without pictures, for tests of text decoders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from safecode_trt.models import Layout, ModelSpec, TextConfig, WeightNames


def text_only(text: TextConfig, weights: WeightNames | None = None) -> ModelSpec:
    """What the exporter asks a family's spec about its decoder."""
    stand_in = SimpleNamespace(
        text=text,
        weights=weights,
        reference_layout=Layout(views=(), tokens=1),
        decoder_inputs=lambda dtype: (),
        cross_attention=None,
    )
    return cast(ModelSpec, stand_in)
