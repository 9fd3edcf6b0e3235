"""What an evaluation amounts to: the figures of every arm, their differences, and where they come from.

The records are the fields of summary.json; `docs/evaluation.md` explains them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safecode_trt.calibration import Bin
from safecode_trt.config import SafeCodeConfig, SamplingParams
from safecode_trt.eval.arms import Arm
from safecode_trt.eval.benchmarks import EvalItem
from safecode_trt.eval.compare import Comparison, compare_arms
from safecode_trt.eval.metrics import OUTCOMES, Judged, Rate, Scores, by_category, rate, scores
from safecode_trt.eval.reliability import (
    JudgeScores,
    brier_score,
    calibration_error,
    judge_scores,
    pearson,
    reliability,
)
from safecode_trt.eval.results import FAILED, Result
from safecode_trt.machine import Machine

__all__ = ["ArmSummary", "Cost", "Provenance", "Summary", "Verdicts", "summarise_arm", "summarise_arms"]

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """How far an arm's verdicts can be trusted, on the items that have a side.

    `calibration_error` is the expected one over the bins of `reliability`, `brier` the mean squared distance;
    `correlation` is with people's votes, where the benchmark has them.
    """

    scores: JudgeScores
    calibration_error: float
    brier: float
    correlation: float | None
    reliability: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Means and medians over the replies; seconds are from the opened picture on."""

    tokens_mean: float
    seconds_mean: float
    seconds_median: float
    seconds_p95: float
    first_token_median: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm's figures. `settings` None: nothing is steered; `base` is the arm of an ablation; `backend` decoded it.

    `exact`: answers that equal the reference, where items have one. `outcomes` counts every outcome, `fallbacks` and
    `failures` count replies by the reason why the fail-safe answered, and why there is none.
    """

    name: str
    mode: str
    settings: SafeCodeConfig | None
    base: str | None
    run: str
    backend: str
    scores: Scores
    categories: Mapping[str, Scores]
    exact: Rate
    outcomes: Mapping[str, int]
    fallbacks: Mapping[str, int]
    failures: Mapping[str, int]
    verdicts: Verdicts | None
    cost: Cost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What it takes to make the results again.

    `bundle_digest` is of the bundle's files and settings, `judge` gives the verdicts unless an arm has another, and
    `templates` names the words around the requests.
    """

    command: str
    bundle: str
    bundle_digest: str
    model_type: str
    precision: str
    source_sha256: str
    machine: Machine
    sampling: SamplingParams
    judge: str
    system: str
    templates: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """summary.json. `part` is the shard, None for all; `items` is how many were to be asked in every arm."""

    benchmark: str
    splits: tuple[str, ...]
    part: str | None
    items: int
    safe: int
    unsafe: int
    notes: tuple[str, ...]
    answer_judge: str
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    provenance: Provenance
    schema_version: int = SCHEMA_VERSION


def summarise_arms(
    arms: Sequence[Arm],
    results: Iterable[Result],
    judged: Mapping[tuple[str, ...], Judged],
    items: Mapping[str, EvalItem],
    *,
    seed: int,
) -> tuple[tuple[ArmSummary, ...], tuple[Comparison, ...]]:
    """The figures of every arm that has results, and the differences between them."""
    answered: dict[str, list[Result]] = {arm.name: [] for arm in arms}
    for result in results:
        answered[result.mode].append(result)
    with_results = [arm for arm in arms if answered[arm.name]]
    by_arm = {arm.name: [judged[result.identity] for result in answered[arm.name]] for arm in with_results}
    summaries = tuple(summarise_arm(arm, answered[arm.name], by_arm[arm.name], items) for arm in with_results)
    return summaries, compare_arms(with_results, by_arm, seed=seed)


def summarise_arm(
    arm: Arm, results: Sequence[Result], judged: Sequence[Judged], items: Mapping[str, EvalItem]
) -> ArmSummary:
    """The figures of one arm."""
    counts = Counter(entry.outcome for entry in judged)
    given = [result for result in results if result.finish_reason != FAILED]
    references = [(result, items[result.key].reference) for result in given]
    return ArmSummary(
        name=arm.name,
        mode=arm.mode,
        settings=arm.settings,
        base=arm.base,
        run=results[0].run,
        backend=results[0].backend,
        scores=scores(judged),
        categories=by_category(judged),
        exact=rate(result.answer == right for result, right in references if right is not None),
        outcomes={outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]},
        fallbacks=_count(result.fallback_reason for result in given),
        failures=_count(result.failure for result in results),
        verdicts=_verdicts(given, items),
        cost=_cost(given),
    )


def _count(reasons: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(reason for reason in reasons if reason is not None).most_common())


def _verdicts(results: Sequence[Result], items: Mapping[str, EvalItem]) -> Verdicts | None:
    sided = [
        (result.p_unsafe, result.verdict_unsafe, result.side == "unsafe", items[result.key].safe_share)
        for result in results
        if result.side != "none" and result.p_unsafe is not None and result.verdict_unsafe is not None
    ]
    if not sided:
        return None
    beliefs, said, truth, votes = (list(column) for column in zip(*sided, strict=True))
    voted = [(1 - belief, vote) for belief, vote in zip(beliefs, votes, strict=True) if vote is not None]
    return Verdicts(
        scores=judge_scores(said, truth),
        calibration_error=calibration_error(beliefs, truth),
        brier=brier_score(beliefs, truth),
        correlation=pearson(*zip(*voted, strict=True)) if voted else None,
        reliability=reliability(beliefs, truth),
    )


def _cost(results: Sequence[Result]) -> Cost | None:
    if not results:
        return None
    seconds = np.array([result.seconds for result in results])
    first = [result.first_token_seconds for result in results if result.first_token_seconds is not None]
    return Cost(
        tokens_mean=float(np.mean([result.tokens for result in results])),
        seconds_mean=float(seconds.mean()),
        seconds_median=float(np.median(seconds)),
        seconds_p95=float(np.quantile(seconds, 0.95)),
        first_token_median=float(np.median(first)) if first else None,
    )
