"""Who gives the verdict, as options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from safecode_trt.cli.options import apply

if TYPE_CHECKING:
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["judge_options", "without_effect"]

F = TypeVar("F", bound=Callable[..., Any])

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


ENDPOINT_OPTIONS = {"timeout": "--judge-timeout", "key_variable": "--judge-key", "cache": "--judge-cache"}


def without_effect(judge: JudgeConfig) -> list[str]:
    """The options that change nothing about the judges that were named."""
    idle = {} if len(judge.judges) > 1 else {"rule": "--judge-rule"}
    if not any(name.startswith("endpoint") for name in judge.judges):
        idle |= ENDPOINT_OPTIONS
    usual = type(judge)()
    return [option for name, option in idle.items() if getattr(judge, name) != getattr(usual, name)]


def judge_options(command: F) -> F:
    """Adds --judge and what belongs to it; the command receives `judge`, a JudgeConfig that has been checked."""

    @functools.wraps(command)
    def wrapper(
        *,
        judges: tuple[str, ...],
        rule: Any,
        threshold: float | None,
        timeout: float,
        key_variable: str,
        cache: str | None,
        **options: Any,
    ) -> Any:
        from safecode_trt.runtime.judges import JudgeConfig

        judge = JudgeConfig(
            judges=judges,
            rule=rule,
            threshold=threshold,
            timeout=timeout,
            key_variable=key_variable,
            cache=cache,
        )
        return command(judge=judge, **options)

    return apply(JUDGE, cast(F, wrapper))
