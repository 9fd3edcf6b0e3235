"""How pixels are scaled, normalised and resized: by the image processor's settings, or as its classes assume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CENTRED_PIXELS", "CLIP_PIXELS", "pixel_fields"]

CLIP_PIXELS: Mapping[str, Any] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "rescale_factor": 1 / 255,
    "resample": 3,
}
"""CLIP's means and deviations, bicubic."""
CENTRED_PIXELS: Mapping[str, Any] = {
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "rescale_factor": 1 / 255,
    "resample": 2,
}
"""From -1 to 1, bilinear."""


def pixel_fields(settings: Mapping[str, Any], assumed: Mapping[str, Any] = CLIP_PIXELS) -> dict[str, Any]:
    """The fields of a spec that say what is done to pixels."""
    found = {**assumed, **{key: value for key, value in settings.items() if value is not None}}
    return {
        "image_mean": tuple(map(float, found["image_mean"])),
        "image_std": tuple(map(float, found["image_std"])),
        "rescale_factor": float(found["rescale_factor"]),
        "resample": int(found["resample"]),
    }
