"""safecode-trt eval: a benchmark of safety, answered in several modes on equal terms, judged, and reported."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from safecode_trt.cli import console
from safecode_trt.cli.eval_options import (
    answer_options,
    judging_options,
    names,
    note_idle_options,
    worker_options,
)
from safecode_trt.cli.judge_options import judge_options
from safecode_trt.cli.options import PATH, as_json, engine_options, sampling_options
from safecode_trt.config import MODES, Mode, RuntimeConfig, SamplingParams
from safecode_trt.errors import EvalError

if TYPE_CHECKING:
    from safecode_trt.eval.evaluate import Workers
    from safecode_trt.eval.pipeline import Judging
    from safecode_trt.eval.summary import Summary
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["command"]


@click.command(
    "eval",
    short_help="Answer and judge a benchmark of safety.",
)
@click.argument("bundle", type=PATH)
@click.option(
    "--benchmark", required=True, metavar="NAME", help="Such as mssbench; docs/evaluation.md lists them."
)
@click.option(
    "--data",
    type=PATH,
    required=True,
    metavar="FOLDER",
    help="The benchmark's files, as its authors lay them out.",
)
@click.option(
    "--modes",
    callback=names(MODES),
    default="plain,safecode",
    show_default=True,
    help=f"Out of {', '.join(MODES)}; compared with the first one.",
)
@click.option(
    "--ablate",
    is_flag=True,
    help="Also the default mode without each of its parts.",
)
@click.option(
    "--output",
    type=PATH,
    required=True,
    metavar="FOLDER",
    help="Results and report; what is there is not asked again.",
)
@answer_options
@judge_options
@judging_options
@worker_options
@sampling_options
@engine_options
@as_json
def command(
    bundle: Path,
    benchmark: str,
    data: Path,
    modes: tuple[str, ...],
    ablate: bool,
    output: Path,
    split: tuple[str, ...],
    limit: int | None,
    shard: str | None,
    merge: tuple[Path, ...],
    allow_missing: bool,
    templates: Path | None,
    system: str,
    export_labels: Path | None,
    judging: Judging,
    judge: JudgeConfig,
    workers: Workers,
    sampling: SamplingParams,
    runtime: RuntimeConfig,
    as_json: bool,
) -> None:
    """Ask BUNDLE a benchmark in several modes on equal terms, and write report.html into --output.

    \b
    Example:
      safecode-trt eval build/demo-bundle --benchmark demo-world
        --data build/world --modes plain,safecode --ablate --output build/eval
    """
    from safecode_trt.bundle import Bundle
    from safecode_trt.eval.arms import make_arms
    from safecode_trt.eval.benchmarks import (
        BENCHMARKS,
        RUBRICS,
        TEMPLATES,
        load_templates,
        read_benchmark,
    )
    from safecode_trt.eval.benchmarks.templates import templates_name
    from safecode_trt.eval.evaluate import answer_items, choose_items, gather
    from safecode_trt.eval.labels import export_labels as write_labels
    from safecode_trt.eval.pipeline import Part, judge_answers, write_report
    from safecode_trt.eval.results import Shard
    from safecode_trt.eval.runner import RunnerConfig

    one = Shard.parse(shard) if shard else None
    words = load_templates(templates) if templates else {**TEMPLATES, **RUBRICS}
    found = read_benchmark(benchmark, data, splits=split, templates=words, allow_missing=allow_missing)
    part = Part(
        found=found,
        items=choose_items(found.items, limit=limit, shard=one),
        splits=split or BENCHMARKS[benchmark].default,
        shard=one,
    )
    manifest = Bundle.open(bundle, check_hashes=False).manifest
    if manifest.text_only and (shown := next((item for item in part.items if item.picture), None)):
        raise EvalError(
            f"{benchmark} shows pictures, such as that of {shown.key}, and {bundle} has no vision encoder; evaluate it "
            "on a benchmark of texts, or another bundle on this one"
        )
    defaults = manifest.safecode
    config = RunnerConfig(
        bundle=bundle,
        arms=make_arms(cast("tuple[Mode, ...]", modes), ablate=ablate, defaults=defaults, judge=judge),
        sampling=sampling,
        runtime=runtime,
        judge=judge,
        system=system,
        templates=templates_name(words),
    )
    note_idle_options(config, defaults, judging)
    if merge:
        gather(merge, output)
    try:
        with console.progress() as progress:
            answers = answer_items(
                config,
                part.items,
                output,
                workers=workers,
                progress=progress,
                started=_say_start,
            )
            if answers.cut is not None:
                console.note("the last line of the results was cut off; its item was answered again")
            if export_labels:
                rows = write_labels(
                    export_labels, answers.results, {i.key: i for i in part.items}, seed=sampling.seed
                )
                console.note(f"{rows} answers to label are in {export_labels}")
            said_by, judged = judge_answers(
                answers.results, part, output, judging, templates=words, runtime=runtime, progress=progress
            )
    except KeyboardInterrupt:
        console.note(
            f"stopped; every finished answer is kept in {output}, and the same command goes on from there"
        )
        raise click.Abort from None
    summary = write_report(config, part, answers, said_by, judged, output, command=_command())
    if as_json:
        from safecode_trt.records import to_dict

        console.emit_json(to_dict(summary))
    else:
        _show(summary, output)


def _say_start(earlier: int, total: int) -> None:
    if earlier:
        console.note(f"{earlier} of {total} answers are there already")


def _command() -> str:
    """The command as it was typed, without the query of an address, which may hold a secret."""
    shown = [re.sub(r"\?[^#]*", "", word) if "://" in word else word for word in sys.argv[1:]]
    return shlex.join(["safecode-trt", *shown])


def _show(summary: Summary, output: Path) -> None:
    from safecode_trt.cli.tables import shown
    from safecode_trt.eval.report import findings, warnings
    from safecode_trt.eval.report_tables import short_table

    to = console.stdout()
    to.print(shown(short_table(summary)))
    for line in findings(summary):
        to.print(console.printable(line), soft_wrap=True)
    for line in warnings(summary):
        console.note(f"note: {console.printable(line)}")
    click.echo(f"the whole report: {output / 'report.html'}")
