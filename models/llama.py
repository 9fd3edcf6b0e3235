"""Llama and what is built like it, such as SmolLM2 and Vicuna: text only."""

from safecode_trt.models.text_only import load

__all__ = ["load"]
