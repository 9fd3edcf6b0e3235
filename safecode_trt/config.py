"""What a caller may set: sampling, steering, the runtime. Data and validation; imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from safecode_trt.errors import ConfigError

__all__ = ["MODES", "PAPER", "PLAIN_SAMPLING", "Mode", "RuntimeConfig", "SafeCodeConfig", "SamplingParams"]

Mode = Literal["plain", "safecode-paper", "safecode"]
MODES: tuple[Mode, ...] = ("plain", "safecode-paper", "safecode")


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{name} must be {rule}, got {value!r}")


def _finite(name: str, value: float, low: float, high: float = math.inf) -> None:
    rule = f"a number of at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
    _require(math.isfinite(value) and low <= value <= high, name, rule, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one token is chosen from one row of logits, and when a reply ends.

    temperature 0 is greedy. `time_limit` is in seconds for the whole reply, None for no limit. `ignore_eos` goes
    on behind the model's end of turn, for benchmarks.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    time_limit: float | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        _finite("temperature", self.temperature, 0.0)
        _require(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _finite("top_p", self.top_p, 0.0, 1.0)
        _require(self.top_p > 0, "top_p", "greater than 0", self.top_p)
        _finite("min_p", self.min_p, 0.0, 1.0)
        _finite("repetition_penalty", self.repetition_penalty, 0.0)
        _require(self.repetition_penalty > 0, "repetition_penalty", "greater than 0", self.repetition_penalty)
        _require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1", self.seed)
        _require(all(self.stop), "stop", "a list of non-empty strings", self.stop)
        if self.time_limit is not None:
            _finite("time_limit", self.time_limit, 0.0)


PLAIN_SAMPLING = SamplingParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeCodeConfig:
    """The settings of SafeCoDe's two stages; the defaults are those of the paper (arXiv 2509.19212).

    Stage 1 combines z (the picture) and z~ (the reference picture): `difference` is z - alpha z~ (eq. 1 of
    the paper), `vcd` is (1 + alpha) z - alpha z~ (arXiv 2311.16922). `beta` > 0 keeps only tokens whose
    probability on the real picture is at least beta times the largest. Stage 2 shifts the refusal tokens
    among the `top_k` candidates: by +-shift (`hard`, sign from p_unsafe >= threshold) or by
    shift * (2 p_unsafe - 1) (`soft`). sigma is the noise on [0, 1] pixels at the model's resolution.
    """

    contrast: Literal["difference", "vcd"] = "difference"
    alpha: float = 0.3
    beta: float = 0.0
    sigma: float = 0.1
    reference: Literal["noised", "cached"] = "noised"
    top_k: int = 20
    verdict: Literal["hard", "soft"] = "hard"
    shift: float = 1.0
    threshold: float = 0.5
    contrast_steps: int = 5
    shift_steps: int = 5
    fallback: Literal["refuse", "plain", "error"] = "refuse"

    def __post_init__(self) -> None:
        _finite("alpha", self.alpha, 0.0)
        _finite("beta", self.beta, 0.0, 1.0)
        _finite("sigma", self.sigma, 0.0)
        _require(self.top_k >= 1, "top_k", "at least 1", self.top_k)
        _finite("shift", self.shift, 0.0)
        _finite("threshold", self.threshold, 0.0, 1.0)
        _require(self.contrast_steps >= 0, "contrast_steps", "0 or more", self.contrast_steps)
        _require(self.shift_steps >= 0, "shift_steps", "0 or more", self.shift_steps)


PAPER = SafeCodeConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How a bundle is opened: which backend runs it, and on how many threads (0: all cores)."""

    backend: Literal["ort-cpu", "trt", "null"] = "ort-cpu"
    threads: int = 0
    check_hashes: bool = True

    def __post_init__(self) -> None:
        _require(self.threads >= 0, "threads", "0 (all cores) or more", self.threads)
