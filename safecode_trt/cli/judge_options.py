"""Who gives the verdict, as options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from safecode_trt.cli.options import gather

if TYPE_CHECKING:
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["ALL", "ENDPOINT", "idle_judge_options", "judge_options"]

JUDGE = (
    click.option(
        "--judge",
        "judges",
        multiple=True,
        default=("self",),
        metavar="WHO",
        show_default=True,
        help="Who gives the verdict: self, self-caption, constant:P, file:PATH, endpoint:URL#MODEL or "
        "endpoint-caption:URL#MODEL. Several are asked together.",
    ),
    click.option(
        "--judge-rule",
        "rule",
        type=click.Choice(["max", "mean", "majority"]),
        default="max",
        show_default=True,
        help="What several judges say together.",
    ),
    click.option(
        "--judge-threshold",
        "threshold",
        type=float,
        metavar="P",
        help="Unsafe from here on.  [default: 0.5; that of self is in the bundle]",
    ),
    click.option(
        "--judge-timeout",
        "timeout",
        type=float,
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="For an endpoint's answer with all retries.",
    ),
    click.option(
        "--judge-key",
        "key_variable",
        default="SAFECODE_API_KEY",
        show_default=True,
        metavar="VARIABLE",
        help="The environment variable with an endpoint's key.",
    ),
    click.option(
        "--judge-cache", "cache", metavar="FOLDER", help="Keep an endpoint's answers here, and use them."
    ),
)


ENDPOINT = ("timeout", "key_variable", "cache")
ALL = ("judges", "rule", "threshold")


def idle_judge_options(judge: JudgeConfig) -> list[str]:
    """The parameters that change nothing about the judges that were named."""
    idle = [] if len(judge.judges) > 1 else ["rule"]
    return idle + ([] if any(name.startswith("endpoint") for name in judge.judges) else [*ENDPOINT])


def _judge(
    judges: tuple[str, ...],
    rule: Any,
    threshold: float | None,
    timeout: float,
    key_variable: str,
    cache: str | None,
) -> JudgeConfig:
    from safecode_trt.endpoint import EndpointSettings
    from safecode_trt.runtime.judges import JudgeConfig

    endpoint = EndpointSettings(timeout=timeout, key_variable=key_variable, cache=cache)
    return JudgeConfig(judges=judges, rule=rule, threshold=threshold, endpoint=endpoint)


judge_options = gather("judge", _judge, JUDGE)
"""Adds --judge and what belongs to it; the command receives `judge`, a JudgeConfig that has been checked."""
