"""The options of `eval`, gathered into its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from safecode_trt.cli.judge_options import ALL, ENDPOINT, idle_judge_options
from safecode_trt.cli.options import PATH, add, gather, note_idle
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from safecode_trt.eval.evaluate import Workers
    from safecode_trt.eval.pipeline import Judging
    from safecode_trt.eval.runner import RunnerConfig
    from safecode_trt.manifest import SafeCodeDefaults
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["answer_options", "judging_options", "names", "note_idle_options", "worker_options"]

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Any], Any]
JUDGES = ("matcher", "rubric-endpoint", "rubric-bundle", "human-csv")

ANSWERS: tuple[Option, ...] = (
    click.option(
        "--split",
        multiple=True,
        metavar="NAME",
        help="Part of the benchmark; repeatable.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only the first N items.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Only this part of the items, for one of N machines.",
    ),
    click.option(
        "--merge",
        type=PATH,
        multiple=True,
        metavar="FILE",
        help="Add the results of another machine; repeatable.",
    ),
    click.option(
        "--allow-missing", is_flag=True, help="Leave out items whose picture is missing, and count them."
    ),
    click.option(
        "--templates", type=PATH, metavar="FILE", help="Words around requests and answers, as JSON."
    ),
    click.option(
        "--system",
        default="",
        metavar="TEXT",
        help="The system text of every request.",
    ),
    click.option(
        "--export-labels",
        type=PATH,
        metavar="FILE",
        help="Write the answers as a table for people to label.",
    ),
)
JUDGING: tuple[Option, ...] = (
    click.option(
        "--answer-judge",
        "kind",
        type=click.Choice(JUDGES),
        default="matcher",
        show_default=True,
        help="Who says what an answer does.",
    ),
    click.option(
        "--answer-refusals",
        "refusals",
        type=PATH,
        metavar="FILE",
        help="Another list for the matcher, as JSON.",
    ),
    click.option(
        "--answer-endpoint",
        "endpoint",
        metavar="URL#MODEL",
        help="rubric-endpoint: an OpenAI-compatible address.",
    ),
    click.option(
        "--answer-bundle",
        "judge_bundle",
        type=PATH,
        metavar="BUNDLE",
        help="rubric-bundle: the model that judges.",
    ),
    click.option(
        "--labels",
        type=PATH,
        metavar="FILE",
        help="human-csv: the table with labels.",
    ),
)
WORKERS: tuple[Option, ...] = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray asks on many machines.",
    ),
    click.option(
        "--workers",
        type=int,
        default=1,
        show_default=True,
        help="ray: how many open the bundle.",
    ),
    click.option(
        "--address", metavar="ADDRESS", help="ray: a running cluster; without it one is started here."
    ),
)


def answer_options(command: F) -> F:
    """Adds which items are asked, and with which words."""
    return add(ANSWERS, command)


def _judging(
    kind: Any,
    refusals: Path | None,
    endpoint: str | None,
    judge_bundle: Path | None,
    labels: Path | None,
    judge: JudgeConfig,
) -> Judging:
    from safecode_trt.endpoint import EndpointConfig
    from safecode_trt.eval.pipeline import Judging
    from safecode_trt.eval.refusal import REFUSALS, load_refusals

    # The key, patience and cache are those of the judge of requests.
    asked = replace(judge.endpoint, top_logprobs=0)
    return Judging(
        kind=kind,
        refusals=load_refusals(refusals) if refusals else REFUSALS,
        endpoint=None if endpoint is None else EndpointConfig.parse(endpoint, asked, field="endpoint"),
        judge_bundle=judge_bundle,
        labels=labels,
    )


def _workers(engine: Any, workers: int, address: str | None) -> Workers:
    from safecode_trt.eval.evaluate import Workers

    return Workers(engine=engine, workers=workers, address=address)


judging_options = gather("judging", _judging, JUDGING, shared=["judge"])
"""Adds the judge of answers; the command receives `judging`, a Judging. Goes below `judge_options`."""
worker_options = gather("workers", _workers, WORKERS)
"""Adds who answers; the command receives `workers`, a Workers."""


def note_idle_options(config: RunnerConfig, defaults: SafeCodeDefaults, judging: Judging) -> None:
    """Notes what was given and changes nothing in any of the modes that are compared."""
    from safecode_trt.policy import mode_settings
    from safecode_trt.policy.settings_read import settings_read

    judge, arms = config.judge, config.arms
    judged = any(arm.policy(defaults).plan.judged for arm in arms)
    idle = set(idle_judge_options(judge) if judged else (*ALL, *ENDPOINT))
    if judging.kind == "rubric-endpoint":
        idle -= set(ENDPOINT)
    why = f"with --judge {', '.join(judge.judges)}" if judged else "where no mode acts on a verdict"
    note_idle(why, idle)
    unread = (
        settings_read(
            arm.mode,
            defaults,
            settings=arm.settings or mode_settings(arm.mode, defaults),
            sampling=config.sampling,
        ).idle_sampling
        for arm in arms
    )
    # The bootstrap of the report is drawn by the seed, too.
    note_idle("in these modes", frozenset.intersection(*unread) - {"seed"})
    if judging.kind == "human-csv":
        note_idle("with --answer-judge human-csv", ["refusals"])


def names(known: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A callback for names between commas, each of them known."""

    def split(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
        given = tuple(part.strip() for part in value.split(","))
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"must be out of {', '.join(known)}, between commas; got {name!r}", field=option.name
                )
        return given

    return split
