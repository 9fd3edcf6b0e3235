"""What happens to answers: they are judged, summarised, and reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.endpoint import EndpointConfig
from safecode_trt.errors import ConfigError
from safecode_trt.eval.benchmarks import EvalItem, ItemSet, Templates
from safecode_trt.eval.evaluate import Answers
from safecode_trt.eval.judge_models import BundleModel, EndpointModel
from safecode_trt.eval.judging import AnswerJudge, Matcher, judge_results
from safecode_trt.eval.labels import LabelJudge
from safecode_trt.eval.line_log import write_whole
from safecode_trt.eval.metrics import Judged
from safecode_trt.eval.refusal import REFUSALS, RefusalList
from safecode_trt.eval.report import html_report, markdown_report
from safecode_trt.eval.report_cases import worst_cases
from safecode_trt.eval.report_tables import modes
from safecode_trt.eval.results import Result, Shard
from safecode_trt.eval.rubrics import RubricJudge
from safecode_trt.eval.runner import RunnerConfig, bundle_digest
from safecode_trt.eval.summary import Provenance, Summary, summarise_arms
from safecode_trt.machine import this_machine
from safecode_trt.progress import Progress
from safecode_trt.records import to_dict

__all__ = ["AnswerJudgeKind", "Judging", "Part", "judge_answers", "write_report"]

JUDGEMENTS = "judgements.jsonl"
AnswerJudgeKind = Literal["matcher", "rubric-endpoint", "rubric-bundle", "human-csv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """Who judges the answers, and what that judge needs."""

    kind: AnswerJudgeKind = "matcher"
    refusals: RefusalList = REFUSALS
    endpoint: EndpointConfig | None = None
    judge_bundle: Path | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        needs: dict[AnswerJudgeKind, tuple[str, object]] = {
            "rubric-endpoint": ("endpoint", self.endpoint),
            "rubric-bundle": ("judge_bundle", self.judge_bundle),
            "human-csv": ("labels", self.labels),
        }
        for kind, (name, value) in needs.items():
            if kind == self.kind and value is None:
                raise ConfigError(f"is missing: the answer judge {kind} needs it", field=name)
            if kind != self.kind and value is not None:
                raise ConfigError(f"is for the answer judge {kind}, got {self.kind}", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which items of a benchmark are asked: all of these, of which they are the shard."""

    found: ItemSet
    items: tuple[EvalItem, ...]
    splits: tuple[str, ...]
    shard: Shard | None = None


def judge_answers(
    results: Sequence[Result],
    part: Part,
    folder: Path,
    judging: Judging,
    *,
    templates: Templates,
    runtime: RuntimeConfig,
    progress: Progress,
) -> tuple[str, dict[tuple[str, ...], Judged]]:
    """The judge's name, and the outcome of every result.

    Raises:
        EvalError: labels are incomplete, or a file cannot be used.
        SafeCodeError: the judge cannot be asked; its judgements so far are kept.
    """
    matcher = Matcher(judging.refusals, part.found.possible)

    def ask(judge: AnswerJudge) -> tuple[str, dict[tuple[str, ...], Judged]]:
        outcomes = judge_results(
            results,
            {item.key: item for item in part.items},
            judge,
            kept=folder / JUDGEMENTS,
            progress=progress,
        )
        return judge.name, outcomes

    if judging.labels is not None and judging.kind == "human-csv":
        return ask(LabelJudge(judging.labels, results))
    if judging.endpoint is not None and judging.kind == "rubric-endpoint":
        return ask(RubricJudge(EndpointModel(judging.endpoint), templates, matcher))
    if judging.judge_bundle is not None and judging.kind == "rubric-bundle":
        with closing(BundleModel(judging.judge_bundle, runtime)) as model:
            return ask(RubricJudge(model, templates, matcher))
    return ask(matcher)


def write_report(
    config: RunnerConfig,
    part: Part,
    answers: Answers,
    judge: str,
    judged: dict[tuple[str, ...], Judged],
    folder: Path,
    *,
    command: str,
) -> Summary:
    """Writes summary.json, report.md and report.html.

    Raises:
        EvalError: a file cannot be written.
    """
    items = {item.key: item for item in part.items}
    arms, comparisons = summarise_arms(config.arms, answers.results, judged, items, seed=config.sampling.seed)
    notes = list(part.found.notes)
    if answers.others:
        notes.append(
            f"the results file has other modes too, which are not in this report: {', '.join(answers.others)}"
        )
    summary = Summary(
        benchmark=part.items[0].benchmark,
        splits=part.splits,
        part=None if part.shard is None else f"{part.shard.index} of {part.shard.count}",
        items=len(part.items),
        safe=sum(item.side == "safe" for item in part.items),
        unsafe=sum(item.side == "unsafe" for item in part.items),
        notes=tuple(notes),
        answer_judge=judge,
        arms=arms,
        comparisons=comparisons,
        provenance=_provenance(config, command),
    )
    shown = [arm.name for arm in modes(summary)]
    cases = worst_cases(shown, answers.results, judged, items)
    write_whole(folder / "summary.json", json.dumps(to_dict(summary), indent=1, allow_nan=False) + "\n")
    write_whole(folder / "report.md", markdown_report(summary))
    write_whole(folder / "report.html", html_report(summary, cases))
    return summary


def _provenance(config: RunnerConfig, command: str) -> Provenance:
    manifest = Bundle.open(config.bundle, check_hashes=False).manifest
    return Provenance(
        command=command,
        bundle=str(config.bundle),
        bundle_digest=bundle_digest(manifest),
        model_type=manifest.model_type,
        precision=manifest.precision,
        source_sha256=manifest.source_sha256,
        machine=this_machine(config.runtime.threads, config.runtime.backend),
        sampling=config.sampling,
        judge=config.judge_name,
        system=config.system,
        templates=config.templates,
    )
