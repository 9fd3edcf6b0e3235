"""What a caller may set about an export. Data and validation; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from safecode_trt.contract import (
    ACTIVATIONS,
    ATTENTION_FORMS,
    HEAD_PRECISIONS,
    PRECISIONS,
    TAP_PLACES,
    VISION_PRECISIONS,
    Activations,
    AttentionForm,
    HeadPrecision,
    Precision,
    Tap,
    VisionPrecision,
)
from safecode_trt.errors import ConfigError
from safecode_trt.manifest import Quantization

__all__ = [
    "DEFAULT_CONTEXT_LENGTH",
    "BlockSize",
    "ExportConfig",
    "WeightConfig",
    "parse_block_size",
    "parse_tap",
]

BlockSize = int | Literal["channel"]

DEFAULT_CONTEXT_LENGTH = 4096
BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightConfig:
    """How the decoder's weights are quantised in int8 and int4.

    `block_size` is how many inputs of an output share one scale; "channel" is all of them, and None takes
    "channel" in int8 and 32 in int4. `asymmetric` adds zero points. `scale_search` looks for the four-bit
    scales with the smallest squared error; they cut the largest weights, which need not make the better model.
    `lm_head` is the precision of the logits' weight where the others are int4.
    """

    block_size: BlockSize | None = None
    asymmetric: bool = False
    scale_search: bool = False
    # Verdicts and refusals are read off the head's logits: with 8 bits there, int4 agrees with float32 more often
    # than with 4, and a step takes hardly longer.
    lm_head: HeadPrecision = "int8"

    def __post_init__(self) -> None:
        size = self.block_size
        if isinstance(size, int) and (size < 16 or size & (size - 1)):
            raise ConfigError(f"must be a power of two from 16 on, got {size}", field="block_size")
        if isinstance(size, str) and size != "channel":
            raise ConfigError(f"must be a number or 'channel', got {size!r}", field="block_size")
        if self.lm_head not in HEAD_PRECISIONS:
            raise ConfigError(
                f"must be one of {', '.join(HEAD_PRECISIONS)}, got {self.lm_head!r}", field="lm_head"
            )

    def quantization(self, precision: Precision, *, head: bool = False) -> Quantization | None:
        """How a weight is quantised in that precision; None leaves it in floating point.

        Raises:
            ConfigError: the settings do not fit the precision.
        """
        if precision not in ("int8", "int4"):
            if self != WeightConfig():
                raise ConfigError(f"{precision} quantises nothing; choose int8 or int4", field="precision")
            return None
        size = self.block_size
        if precision == "int8":
            if self.lm_head != "int8":
                raise ConfigError("int4 needs precision int4, got int8", field="lm_head")
            if self.scale_search:
                raise ConfigError(
                    "finds nothing better in int8; it needs precision int4", field="scale_search"
                )
            block_size = size if isinstance(size, int) else None
        elif size == "channel":
            raise ConfigError("block_size 'channel' is too coarse for int4; choose 32, 64 or 128")
        else:
            block_size = size or BLOCK_SIZE
        four = precision == "int4" and not (head and self.lm_head == "int8")
        return Quantization(
            bits=4 if four else 8,
            block_size=block_size,
            symmetric=not self.asymmetric,
            method="scale-search" if four and self.scale_search else "round-to-nearest",
        )


def parse_tap(text: str) -> Tap:
    """A place and a layer as PLACE:LAYER, such as mlp:8.

    Raises:
        ConfigError: it is anything else.
    """
    place, _, layer = text.partition(":")
    known = {each: each for each in TAP_PLACES}
    if place not in known or not layer.isascii() or not layer.isdigit():
        raise ConfigError(
            f"must be PLACE:LAYER with a place of {', '.join(TAP_PLACES)}, got {text!r}", field="taps"
        )
    return Tap(place=known[place], layer=int(layer))


def parse_block_size(text: str | None) -> BlockSize | None:
    """A block size as a command line has it; `WeightConfig` checks numbers further.

    Raises:
        ConfigError: it is neither a number nor 'channel'.
    """
    if text is None:
        return None
    if text == "channel":
        return "channel"
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"must be a number or 'channel', got {text!r}", field="block_size")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """How a checkpoint becomes a bundle.

    `context_length` is the most positions that prompt and answer take; None takes the model's own, at most 4096.
    `activations` is the type that int8 and int4 weights are multiplied in; None takes fp32, and the other precisions
    have their own. `vision_precision` is that of the vision encoder's weights; None takes fp16 with fp16
    activations, else fp32. `max_tiles` bounds the tiles that a picture is cut into, and with them its image tokens; 0
    leaves only the whole picture, and None takes the checkpoint's own limit. `offline` takes a model on the hub from
    the cache, without a request. `hidden` adds an output with the states after the final norm, `taps` are the places in
    layers whose values can be read and added to.
    """

    precision: Precision = "int4"
    activations: Activations | None = None
    context_length: int | None = None
    attention: AttentionForm = "portable"
    verify: bool = True
    overwrite: bool = False
    weights: WeightConfig = WeightConfig()
    vision_precision: VisionPrecision | None = None
    max_tiles: int | None = None
    offline: bool = False
    hidden: bool = False
    taps: tuple[Tap, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"must be one of {', '.join(PRECISIONS)}, got {self.precision!r}", field="precision"
            )
        if self.attention not in ATTENTION_FORMS:
            raise ConfigError(
                f"must be one of {', '.join(ATTENTION_FORMS)}, got {self.attention!r}", field="attention"
            )
        if self.context_length is not None and self.context_length < 1:
            raise ConfigError(f"must be at least 1, got {self.context_length}", field="context_length")
        if self.max_tiles is not None and self.max_tiles < 0:
            raise ConfigError(f"must be at least 0, got {self.max_tiles}", field="max_tiles")
        if self.vision_precision not in (None, *VISION_PRECISIONS):
            raise ConfigError(
                f"must be one of {', '.join(VISION_PRECISIONS)}, got {self.vision_precision!r}",
                field="vision_precision",
            )
        quantised = self.precision in ("int8", "int4")
        if self.activations not in (None, *ACTIVATIONS) and self.activations != self.precision:
            raise ConfigError(
                f"must be one of {', '.join(ACTIVATIONS)}, got {self.activations!r}", field="activations"
            )
        if not quantised and self.activations not in (None, self.precision):
            raise ConfigError(
                f"{self.precision} has activations of its own; activations {self.activations} "
                "needs precision int8 or int4",
                field="precision",
            )
        if self.activation_precision == "fp16" and self.vision_precision == "fp32":
            raise ConfigError(
                "fp32 needs activations in float32, and these are in float16", field="vision_precision"
            )
        if len(set(self.taps)) < len(self.taps):
            raise ConfigError("must name each place once", field="taps")
        self.weights.quantization(self.precision)

    @property
    def activation_precision(self) -> Activations:
        """The type of the decoder's activations."""
        if self.precision == "int8" or self.precision == "int4":
            return self.activations or "fp32"
        return self.precision

    @property
    def vision_weights(self) -> VisionPrecision:
        """The precision of the vision encoder's weights."""
        return self.vision_precision or ("fp16" if self.activation_precision == "fp16" else "fp32")
