"""What a caller may set about a build. Data and validation; imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safecode_trt.engine_entry import FLAVOURS, Flavour
from safecode_trt.errors import ConfigError
from safecode_trt.models.layout import Size

__all__ = ["DECODE_TOKENS", "EngineConfig", "parse_picture", "parse_sm"]

# A step takes one token; a few more are for those who check drafts of several.
DECODE_TOKENS = 8
OPT_LEVELS = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a bundle's graphs become engines.

    `compute_capabilities` are the GPUs that the engines are for; empty takes the common ones with tensorrt-rtx, and
    the GPU of this machine with tensorrt, which can build for no other. `max_rows` is how many contexts a reply
    carries, `max_prefill` how many tokens go through the decoder at once, `max_picture` (width, height) how large
    the pictures are. None leaves `opt_level` (0 to 5) and `workspace_mib` to TensorRT.
    """

    flavour: Flavour
    compute_capabilities: tuple[str, ...] = ()
    max_rows: int = 3
    max_prefill: int = 1024
    max_picture: Size = (1280, 960)
    opt_level: int | None = None
    workspace_mib: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise ConfigError(f"must be one of {', '.join(FLAVOURS)}, got {self.flavour!r}", field="flavour")
        for name in ("max_rows", "max_prefill", "workspace_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"must be at least 1, got {value}", field=name)
        if self.opt_level not in (None, *OPT_LEVELS):
            raise ConfigError(
                f"must be between 0 and {OPT_LEVELS[-1]}, got {self.opt_level}", field="opt_level"
            )
        if min(self.max_picture) < 1:
            raise ConfigError(f"must have sides of at least 1, got {self.max_picture}", field="max_picture")
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            twice = ", ".join(self.compute_capabilities)
            raise ConfigError(f"names a GPU twice: {twice}", field="compute_capabilities")
        if self.flavour == "tensorrt-rtx" and self.timing_cache:
            raise ConfigError(
                "is for tensorrt; tensorrt-rtx measures nothing while it builds, leave it out",
                field="timing_cache",
            )


def parse_sm(text: str | None) -> tuple[str, ...]:
    """Compute capabilities as a command line has them: 86,89,120.

    Raises:
        ConfigError: it is not that.
    """
    if text is None:
        return ()
    if not re.fullmatch(r"[0-9]{2,3}(,[0-9]{2,3})*", text):
        raise ConfigError(
            f"must be compute capabilities like 86,89,120, got {text!r}", field="compute_capabilities"
        )
    return tuple(text.split(","))


def parse_picture(text: str) -> Size:
    """A picture's size as a command line has it: 1280x960.

    Raises:
        ConfigError: it is not that.
    """
    if not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", text):
        raise ConfigError(f"must be WIDTHxHEIGHT like 1280x960, got {text!r}", field="max_picture")
    width, height = text.split("x")
    return int(width), int(height)
