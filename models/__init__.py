"""What differs between families of vision-language models, and nothing else.

One file per model_type, named after it; `load_spec` reads a checkpoint or bundle folder. Imports numpy at most.
"""

from safecode_trt.models.layout import Layout, Size, View
from safecode_trt.models.rope_config import RopeConfig
from safecode_trt.models.spec import CrossAttention, Features, ModelSpec, known_model_types, load_spec
from safecode_trt.models.text_config import TextConfig, WeightNames

__all__ = [
    "CrossAttention",
    "Features",
    "Layout",
    "ModelSpec",
    "RopeConfig",
    "Size",
    "TextConfig",
    "View",
    "WeightNames",
    "known_model_types",
    "load_spec",
]
