"""The options of `eval`, gathered into its records."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from safecode_trt.cli.options import PATH
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from safecode_trt.endpoint import EndpointConfig
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["answer_options", "judging_options", "names", "worker_options"]

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
        type=click.Choice(JUDGES),
        default="matcher",
        show_default=True,
        help="Who says what an answer does.",
    ),
    click.option(
        "--answer-refusals", type=PATH, metavar="FILE", help="Another list for the matcher, as JSON."
    ),
    click.option(
        "--answer-endpoint", metavar="URL#MODEL", help="rubric-endpoint: an OpenAI-compatible address."
    ),
    click.option(
        "--answer-bundle", type=PATH, metavar="BUNDLE", help="rubric-bundle: the model that judges."
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
    return _apply(ANSWERS, command)


def judging_options(command: F) -> F:
    """Adds the judge of answers; the command receives `judging`, a Judging. Goes below `judge_options`."""

    @functools.wraps(command)
    def wrapper(
        *,
        answer_judge: Any,
        answer_refusals: Path | None,
        answer_endpoint: str | None,
        answer_bundle: Path | None,
        labels: Path | None,
        judge: JudgeConfig,
        **options: Any,
    ) -> Any:
        from safecode_trt.eval.pipeline import Judging
        from safecode_trt.eval.refusal import REFUSALS, load_refusals

        judging = Judging(
            kind=answer_judge,
            refusals=load_refusals(answer_refusals) if answer_refusals else REFUSALS,
            endpoint=None if answer_endpoint is None else _endpoint(answer_endpoint, judge),
            bundle=answer_bundle,
            labels=labels,
        )
        return command(judging=judging, judge=judge, **options)

    return _apply(JUDGING, cast(F, wrapper))


def worker_options(command: F) -> F:
    """Adds who answers; the command receives `workers`, a Workers."""

    @functools.wraps(command)
    def wrapper(*, engine: Any, workers: int, address: str | None, **options: Any) -> Any:
        from safecode_trt.eval.evaluate import Workers

        return command(workers=Workers(engine=engine, workers=workers, address=address), **options)

    return _apply(WORKERS, cast(F, wrapper))


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


def _endpoint(text: str, judge: JudgeConfig) -> EndpointConfig:
    """The address that judges answers; its key, patience and cache are those of the judge of requests."""
    from safecode_trt.endpoint import EndpointConfig

    url, mark, model = text.rpartition("#")
    if not mark:
        raise ConfigError("expected --answer-endpoint URL#MODEL with the model's name behind a #")
    return EndpointConfig(
        url=url,
        model=model,
        key_variable=judge.key_variable,
        timeout=judge.timeout,
        retries=judge.retries,
        backoff=judge.backoff,
        cache=judge.cache,
        top_logprobs=0,
    )


def _apply(options: Sequence[Option], command: F) -> F:
    for option in reversed(options):
        command = option(command)
    return command
