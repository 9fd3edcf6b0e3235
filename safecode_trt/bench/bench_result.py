"""The records of a finished benchmark: ratios first, because they travel between machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safecode_trt.bench.timing import Spread
from safecode_trt.contract import Geometry
from safecode_trt.machine import Machine
from safecode_trt.records import to_dict

__all__ = ["BenchResult", "BundleFacts", "Overhead", "Ratio", "Setup", "Share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """Which bundle was measured."""

    path: str
    model_type: str
    precision: str
    attention: str
    geometry: Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the cases were: rounds, sizes of prompts; `pictures` counts tiles, 0 in a text-only bundle.

    A step sees `visible_keys` positions and reads `capacity`, all that are allocated.
    """

    repeats: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    judge_tokens: int
    pictures: int
    visible_keys: int
    capacity: int
    cached_prefix: str = "warm: an earlier reply of the same opened engine has filled it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times `base` the case `name` takes, within a round."""

    name: str
    base: str
    times: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Milliseconds of one part of the longest reply by kind of decoding, `plain` first."""

    part: str
    milliseconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """A decode step of a reply, in ms, and how much of it is not the executing library's.

    `outside_ms` is `binding_ms` (within the session) and the loop: feeds, combining, sampling, text.
    """

    step: str
    step_ms: float
    outside_ms: float
    binding_ms: float

    @property
    def share(self) -> float:
        return self.outside_ms / self.step_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A finished benchmark. `milliseconds` has every case, per repetition, by name."""

    machine: Machine
    bundle: BundleFacts
    setup: Setup
    ratios: tuple[Ratio, ...]
    milliseconds: dict[str, Spread]
    shares: tuple[Share, ...]
    overhead: tuple[Overhead, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        data: dict[str, Any] = to_dict(self)
        for entry, overhead in zip(data["overhead"], self.overhead, strict=True):
            entry["share"] = overhead.share
        return data
