"""What differs between families of vision-language models, and nothing else.

One file per model_type, named after it; `load_spec` reads a checkpoint or bundle folder. Imports numpy at most.
"""

from safecode_trt.models.spec import ModelSpec, TextConfig, Tiling, WeightNames, known_model_types, load_spec

__all__ = ["ModelSpec", "TextConfig", "Tiling", "WeightNames", "known_model_types", "load_spec"]
