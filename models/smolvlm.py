"""SmolVLM2: Idefics3 under another name; only its processor, which also takes videos, is one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safecode_trt.models.idefics3 import Idefics3Spec, read_spec

__all__ = ["load"]


def load(folder: Path, config: Mapping[str, Any]) -> Idefics3Spec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    return read_spec(folder, config, model_type="smolvlm")
