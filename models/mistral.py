"""Mistral: text only; some have a sliding window, which bounds a bundle's context."""

from safecode_trt.models.text_only import load

__all__ = ["load"]
