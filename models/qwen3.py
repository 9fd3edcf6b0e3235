"""Qwen3: text only; queries and keys are normalised in every head."""

from safecode_trt.models.text_only import load

__all__ = ["load"]
