"""Qwen2 and Qwen2.5: text only; queries, keys and values have biases."""

from safecode_trt.models.text_only import load

__all__ = ["load"]
