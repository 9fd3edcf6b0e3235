"""What a calibration of the model's own judge has found: the record that a bundle's manifest keeps."""

from __future__ import annotations

from dataclasses import dataclass

from safecode_trt.errors import ConfigError

__all__ = ["Bin", "Calibration", "Reliability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The items whose P(unsafe) lies in [low, high), the last bin's end included; shares are None if there are none."""

    low: float
    high: float
    count: int
    mean: float | None
    unsafe: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How far P(unsafe) could be trusted on some items: verdicts that were right, calibration error, its bins."""

    accuracy: float
    calibration_error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The temperature and threshold fitted to labelled items, and what they changed on these same items.

    P(unsafe) is the logistic function of the verdict tokens' margin over `temperature`; unsafe is at least
    `threshold`. `items_sha256` is over the items, their labels and their pictures.
    """

    judge: str
    temperature: float
    threshold: float
    items: int
    unsafe_items: int
    items_sha256: str
    before: Reliability
    after: Reliability

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"must be a number above 0, got {self.temperature!r}", field="temperature")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"must be between 0 and 1, got {self.threshold!r}", field="threshold")
