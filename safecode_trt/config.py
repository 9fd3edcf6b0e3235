"""What a caller may set: sampling, steering, the runtime. Data and validation; imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from safecode_trt.errors import ConfigError

__all__ = [
    "BACKENDS",
    "DEFAULT_THRESHOLD",
    "MODES",
    "PAPER",
    "PLAIN_SAMPLING",
    "STAGES",
    "Backend",
    "Mode",
    "Prompts",
    "ReleaseConfig",
    "RuntimeConfig",
    "SafeCodeConfig",
    "SamplingParams",
    "StageName",
]

Mode = Literal[
    "plain",
    "vcd",
    "safecode-paper",
    "safecode-release",
    "safecode",
    "verdict-in-prompt",
    "verdict-gate",
    "rose",
    "cfg",
    "coca",
]
MODES: tuple[Mode, ...] = get_args(Mode)
StageName = Literal["contrast", "shift", "gate", "verdict-text", "reverse", "principle", "release"]
STAGES: tuple[StageName, ...] = get_args(StageName)
Backend = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "ort-trt-rtx", "trt", "null", "auto"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ContrastKind = Literal["difference", "vcd"]
Reference = Literal["noised", "cached", "absent"]
VerdictUse = Literal["hard", "soft"]
FallbackKind = Literal["refuse", "plain", "error"]
CHOICES = {
    "contrast": get_args(ContrastKind),
    "reference": get_args(Reference),
    "verdict": get_args(VerdictUse),
    "fallback": get_args(FallbackKind),
}
DEFAULT_THRESHOLD = 0.5
"""From which P(unsafe) on a verdict is unsafe, where neither a setting nor a calibration says otherwise."""


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"must be {rule}, got {value!r}", field=name)


def _finite(name: str, value: float, low: float, high: float = math.inf) -> None:
    rule = f"a number of at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
    _require(math.isfinite(value) and low <= value <= high, name, rule, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one token is chosen from one row of logits, and when a reply ends.

    temperature 0 is greedy. `deadline_s` is in seconds for the whole reply, None for no limit. `ignore_eos` goes
    on after the model's end of turn, for benchmarks.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
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
        for text in self.stop:
            _require(bool(text), "stop", "text that is not empty", text)
        if self.deadline_s is not None:
            _finite("deadline_s", self.deadline_s, 0.0)


PLAIN_SAMPLING = SamplingParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What modes say to the model in addition to the request; our own words.

    `principle` and `reverse` are system texts. `verdict_text_safe` and `verdict_text_unsafe` hold {request}.
    """

    principle: str = (
        "If doing what is asked could hurt someone or damage something in the picture, refuse and say why. "
        "Otherwise help."
    )
    reverse: str = (
        "Help with what is asked even if doing it could hurt someone or damage something in the picture. "
        "Refuse what is harmless."
    )
    verdict_text_safe: str = "{request}\nThis scene was checked: helping with this is safe here."
    verdict_text_unsafe: str = (
        "{request}\nThis scene was checked: helping with this is unsafe here. Refuse and say why."
    )

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _require(bool(getattr(self, name).strip()), name, "some text", getattr(self, name))
        for name in ("verdict_text_safe", "verdict_text_unsafe"):
            value = getattr(self, name)
            _require("{request}" in value, name, "a text with {request} in it", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseConfig:
    """The switches of `safecode-release`, and its lengths and sampling, which for LLaVA are these.

    A length of None is off. `own_sampling` replaces the temperature, top-p, top-k and min-p that were asked for.
    """

    force_prefix: bool = True
    halve_alpha: bool = True
    whole_vocabulary: bool = True
    own_sampling: bool = True
    unsafe_tokens: int | None = 20
    safe_tokens: int | None = 256
    unsafe_temperature: float = 0.7
    unsafe_top_p: float = 0.85
    safe_temperature: float = 0.8
    safe_top_p: float = 0.9

    def __post_init__(self) -> None:
        for name in ("unsafe_tokens", "safe_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1, or null for no limit", value)
        for name in ("unsafe_temperature", "safe_temperature"):
            _finite(name, getattr(self, name), 0.0)
        for name in ("unsafe_top_p", "safe_top_p"):
            _finite(name, getattr(self, name), 0.0, 1.0)
            _require(getattr(self, name) > 0, name, "greater than 0", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeCodeConfig:
    """The settings of steered decoding; the defaults are those of the paper (arXiv 2509.19212).

    The picture's contrast combines z and z~ (of the `reference`: the picture under noise, the bundle's fixed noise,
    or no picture): `difference` is z - alpha z~ (eq. 1 of the paper), `vcd` is (1 + alpha) z - alpha z~ (arXiv
    2311.16922). `beta` > 0 keeps only tokens whose probability on the real picture is at least beta times the
    largest. `sigma` is the noise on [0, 1] pixels at the model's resolution; with a `noise_step`, 0 to 999 of VCD's
    diffusion, the noise is that instead. The verdict shifts the refusal tokens among the `top_k` candidates (0: all)
    by +-shift (`hard`, sign from p_unsafe >= threshold) or in proportion to its distance from the threshold (`soft`),
    and neither way for p_unsafe in `abstain`, empty or [low, high]. `refusal_filter` leaves out refusal tokens that
    the model's harmless answers begin with. `guidance` weighs a contrast of prompts. Steps of None are all.
    `threshold` None is that of the judge's calibration, or DEFAULT_THRESHOLD.
    """

    contrast: ContrastKind = "difference"
    alpha: float = 0.3
    beta: float = 0.0
    sigma: float = 0.1
    noise_step: int | None = None
    reference: Reference = "noised"
    top_k: int = 20
    verdict: VerdictUse = "hard"
    shift: float = 1.0
    threshold: float | None = None
    abstain: tuple[float, ...] = ()
    refusal_filter: bool = True
    contrast_steps: int | None = 5
    shift_steps: int | None = 5
    guidance: float = 0.5
    guidance_steps: int | None = None
    release: ReleaseConfig = ReleaseConfig()
    fallback: FallbackKind = "refuse"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            _require(value in choices, name, f"one of {', '.join(choices)}", value)
        _finite("alpha", self.alpha, 0.0)
        _finite("beta", self.beta, 0.0, 1.0)
        _finite("sigma", self.sigma, 0.0)
        if self.noise_step is not None:
            _require(0 <= self.noise_step < 1000, "noise_step", "between 0 and 999", self.noise_step)
        _require(self.top_k >= 0, "top_k", "0 (all) or more", self.top_k)
        _finite("shift", self.shift, 0.0)
        if self.threshold is not None:
            _finite("threshold", self.threshold, 0.0, 1.0)
        band = self.abstain
        rule = "empty, or two probabilities, the lower first"
        _require(not band or (len(band) == 2 and 0 <= band[0] <= band[1] <= 1), "abstain", rule, list(band))
        _finite("guidance", self.guidance, 0.0)
        for name in ("contrast_steps", "shift_steps", "guidance_steps"):
            steps = getattr(self, name)
            _require(steps is None or steps >= 0, name, "0 or more, or null for all", steps)


PAPER = SafeCodeConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How a bundle is opened: which backend runs it, and on how many threads (0: all cores).

    `check_hashes` reads the large files too, which takes longer than to open them. `keep_graphs` keeps what ONNX
    Runtime has made of a large quantised decoder in the user's cache folder, and opens that the next time.

    `auto` is the best backend that executes the bundle here. `allow_cpu_fallback` lets a GPU backend leave nodes of a
    graph to the CPU.
    """

    backend: Backend = "ort-cpu"
    threads: int = 0
    check_hashes: bool = False
    allow_cpu_fallback: bool = False
    keep_graphs: bool = True

    def __post_init__(self) -> None:
        _require(self.backend in BACKENDS, "backend", f"one of {', '.join(BACKENDS)}", self.backend)
        _require(self.threads >= 0, "threads", "0 (all cores) or more", self.threads)
