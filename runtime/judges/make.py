"""The judges by name: the only place that knows which judge a name is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from safecode_trt.config import DEFAULT_THRESHOLD
from safecode_trt.endpoint import Endpoint, EndpointConfig, EndpointSettings
from safecode_trt.errors import ConfigError
from safecode_trt.runtime.judges.ensemble import EnsembleJudge, Rule
from safecode_trt.runtime.judges.fixed import ConstantJudge, FileJudge, file_digest, read_verdicts
from safecode_trt.runtime.judges.judge import Judge
from safecode_trt.runtime.judges.own import SelfCaptionJudge, SelfJudge
from safecode_trt.runtime.judges.remote import EndpointJudge

__all__ = ["FORMS", "JudgeConfig", "make_judge", "verdict_parts"]

FORMS = (
    "self",
    "self-caption",
    "constant:P",
    "file:PATH",
    "endpoint:URL#MODEL",
    "endpoint-caption:URL#MODEL",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Who judges: one or more of FORMS; several are one ensemble with a `rule`.

    `threshold` is from which P(unsafe) on a verdict is unsafe, None for 0.5; `self` has that of its calibration.
    `endpoint` is how endpoints are asked.
    """

    judges: tuple[str, ...] = ("self",)
    rule: Rule = "max"
    threshold: float | None = None
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)

    def __post_init__(self) -> None:
        if not self.judges:
            raise ConfigError(f"must name at least one judge: {', '.join(FORMS)}", field="judges")
        if len(set(self.judges)) != len(self.judges):
            raise ConfigError(f"must name each judge once, got {', '.join(self.judges)}", field="judges")
        if self.rule not in get_args(Rule):
            raise ConfigError(f"must be one of {', '.join(get_args(Rule))}, got {self.rule!r}", field="rule")
        if self.threshold is not None:
            if not 0 <= self.threshold <= 1:
                raise ConfigError(f"must be between 0 and 1, got {self.threshold!r}", field="threshold")
            if self.judges == ("self",):
                raise ConfigError(
                    "has no effect on the judge self, whose threshold is the bundle's",
                    field="threshold",
                    fix="pass --set threshold=P, or calibrate the bundle",
                )


def make_judge(config: JudgeConfig) -> Judge | None:
    """The judge of a configuration; None for `self` alone, which judges in a row of the reply's own batch.

    Raises:
        ConfigError: a name is unknown, or what it needs is missing or malformed.
    """
    if config.judges == ("self",):
        return None
    members = tuple(_make_one(name, config) for name in config.judges)
    if len(members) == 1:
        return members[0]
    return EnsembleJudge(members=members, rule=config.rule, threshold=_threshold(config))


def verdict_parts(config: JudgeConfig) -> list[str | float | None]:
    """All that the verdicts of a configuration depend on; a file of verdicts is named by its content.

    Raises:
        ConfigError: the file cannot be read.
    """
    names = []
    for name in config.judges:
        kind, _, path = name.partition(":")
        names.append(f"file:{file_digest(Path(path))}" if kind == "file" else name)
    return [*names, config.rule, config.threshold, config.endpoint.top_logprobs]


def _threshold(config: JudgeConfig) -> float:
    return DEFAULT_THRESHOLD if config.threshold is None else config.threshold


def _make_one(name: str, config: JudgeConfig) -> Judge:
    kind, _, rest = name.partition(":")
    threshold = _threshold(config)
    if name == "self":
        return SelfJudge()
    if name == "self-caption":
        return SelfCaptionJudge(threshold=threshold)
    if kind == "constant" and rest:
        return ConstantJudge(p_unsafe=_probability(rest), threshold=threshold)
    if kind == "file" and rest:
        return FileJudge(verdicts=read_verdicts(Path(rest)), threshold=threshold)
    if kind in ("endpoint", "endpoint-caption") and rest:
        endpoint = EndpointConfig.parse(rest, config.endpoint, field="judges")
        return EndpointJudge(Endpoint(endpoint), threshold, captioned=kind == "endpoint-caption")
    raise ConfigError(f"must be one of {', '.join(FORMS)}, got the judge {kind!r}", field="judges")


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(
            f"must be constant:P with a probability between 0 and 1, got {text!r}", field="judges"
        )
    return value
