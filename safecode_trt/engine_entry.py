"""What bundle.json says of the engines that TensorRT has built of a bundle's graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from safecode_trt.contract import Activations, AttentionForm, Precision
from safecode_trt.errors import BundleError

__all__ = ["ENGINES", "FLAVOURS", "AxisRange", "EngineEntry", "EngineGraph", "EngineProfile", "Flavour"]

ENGINES = "engines"
Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisRange:
    """The sizes that a free axis may have in an engine; it is fastest at `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise BundleError(
                f"expected an axis of 1 or more with min <= opt <= max, got {self.min}, {self.opt}, {self.max}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One of an engine's optimisation profiles, in their order: the ranges of the graph's free axes."""

    name: str
    axes: Mapping[str, AxisRange]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGraph:
    """One graph as an engine: its path in the bundle, its profiles, and how long the build took."""

    file: str
    profiles: tuple[EngineProfile, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """The bundle's graphs, built for one version of TensorRT and for the compute capabilities named ("86" is 8.6).

    `attention` is the form that the decoder was built in, which need not be the bundle's; `capacity` is how many
    positions its cache has, always. `graphs` is by the graph's name in the bundle.
    """

    flavour: Flavour
    version: str
    compute_capabilities: tuple[str, ...]
    precision: Precision
    activations: Activations
    attention: AttentionForm
    capacity: int
    graphs: Mapping[str, EngineGraph]

    @property
    def folder(self) -> str:
        """The engines' folder in the bundle."""
        return f"{ENGINES}/{self.flavour}-{self.version}-sm{'_'.join(self.compute_capabilities)}"
