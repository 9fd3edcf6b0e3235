"""What differs between families of vision-language models, and nothing else.

One file per model_type, named after it; `load_spec` reads a checkpoint or bundle folder. Imports numpy at most.
"""

from safecode_trt.models.layout import Layout, Size, View
from safecode_trt.models.spec import (
    Features,
    ModelSpec,
    TextConfig,
    WeightNames,
    known_model_types,
    load_spec,
)

__all__ = [
    "Features",
    "Layout",
    "ModelSpec",
    "Size",
    "TextConfig",
    "View",
    "WeightNames",
    "known_model_types",
    "load_spec",
]
