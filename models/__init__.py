"""What differs between families of vision-language models, and nothing else.

One file per model_type, named after it; `load_spec` reads a checkpoint or bundle folder. Imports numpy at most.
"""

from safecode_trt.models.rope import RopeConfig
from safecode_trt.models.spec import ModelSpec, Tiling, known_model_types, load_spec
from safecode_trt.models.text import TextConfig, WeightNames

__all__ = ["ModelSpec", "RopeConfig", "TextConfig", "Tiling", "WeightNames", "known_model_types", "load_spec"]
