"""What a caller may set about an export. Data and validation; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from safecode_trt.contract import ATTENTION_FORMS, PRECISIONS, AttentionForm, Precision
from safecode_trt.errors import ConfigError

__all__ = ["DEFAULT_CONTEXT_LENGTH", "ExportConfig"]

DEFAULT_CONTEXT_LENGTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """How a checkpoint becomes a bundle.

    `context_length` is the most positions that prompt and answer take; None takes the model's own, at most 4096.
    `block_size` is how many weights of a column share one scale in int4 and int8.
    """

    precision: Precision = "int4"
    context_length: int | None = None
    attention: AttentionForm = "portable"
    verify: bool = True
    overwrite: bool = False
    block_size: int = 32

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.attention not in ATTENTION_FORMS:
            raise ConfigError(
                f"attention must be one of {', '.join(ATTENTION_FORMS)}, got {self.attention!r}"
            )
        if self.context_length is not None and self.context_length < 1:
            raise ConfigError(f"context_length must be at least 1, got {self.context_length}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size must be a power of two from 16 on, got {self.block_size}")
