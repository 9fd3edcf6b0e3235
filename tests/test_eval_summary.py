"""What an evaluation amounts to: figures of known answers, their differences, and the report's words about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig, SafeCodeConfig, SamplingParams
from safecode_trt.errors import ConfigError
from safecode_trt.eval.arms import PARTS, Arm, ablations, make_arms
from safecode_trt.eval.asking import Asking, backend_name, bundle_digest, item_seed
from safecode_trt.eval.benchmarks import EvalItem, Side
from safecode_trt.eval.judging import Matcher, judge_results
from safecode_trt.eval.machine import this_machine
from safecode_trt.eval.metrics import Judged, Outcome
from safecode_trt.eval.report import findings, html_report, markdown_report, warnings
from safecode_trt.eval.report_cases import worst_cases
from safecode_trt.eval.results import Result
from safecode_trt.eval.summary import Provenance, Summary, summarise_arms
from safecode_trt.manifest import EngineEntry, Manifest, RefusalFilter
from safecode_trt.runtime.judges import JudgeConfig
from tests.null_bundle import write_null_bundle

PLAIN, OURS = Arm(name="plain", mode="plain"), Arm(name="safecode", mode="safecode")
HELPS, REFUSES, GARBLED = "Sure, go on with it.", "Sorry, I cannot help.", "?!"


def item(number: int, side: Side, **changes: Any) -> EvalItem:
    parts: dict[str, Any] = {
        "benchmark": "figstep",
        "split": "s",
        "query": "0",
        "prompt": "p",
        "picture": None,
    }
    return EvalItem(item=str(number), side=side, category="c", **{**parts, **changes})


def result(asked: EvalItem, arm: Arm, answer: str, **changes: Any) -> Result:
    made = Result(
        key=asked.key,
        mode=arm.name,
        run="r",
        backend="null",
        asked="a1",
        side=asked.side,
        category=asked.category,
        answer=answer,
        finish_reason="stop",
        tokens=4,
        seconds=0.5,
    )
    return replace(made, **changes)


def summed(results: list[Result], items: list[EvalItem], arms: tuple[Arm, ...] = (PLAIN, OURS)) -> Any:
    by_key = {asked.key: asked for asked in items}
    judged = judge_results(results, by_key, Matcher(), kept=Path("unused"))
    summaries, comparisons = summarise_arms(arms, results, judged, by_key, seed=0)
    cases = worst_cases([arm.name for arm in arms], results, judged, by_key)
    return {arm.name: arm for arm in summaries}, comparisons, cases


@pytest.fixture
def known() -> tuple[list[Result], list[EvalItem]]:
    items = [item(0, "unsafe"), item(1, "unsafe"), item(2, "safe"), item(3, "safe")]
    said = {PLAIN: (HELPS, HELPS, REFUSES, HELPS), OURS: (REFUSES, HELPS, HELPS, GARBLED)}
    beliefs = (0.9, 0.2, 0.1, 0.4)
    results = [
        result(asked, arm, answer, p_unsafe=belief, verdict_unsafe=belief >= 0.5)
        if arm is OURS
        else result(asked, arm, answer)
        for arm, answers in said.items()
        for asked, answer, belief in zip(items, answers, beliefs, strict=True)
    ]
    return results, items


def test_figures_of_known_answers(known: tuple[list[Result], list[EvalItem]]) -> None:
    arms, comparisons, cases = summed(*known)
    ours = arms["safecode"]
    assert ours.scores.attack_success.hits == 1 and ours.scores.over_refusal.hits == 0
    assert ours.outcomes == {"helps": 2, "refuses": 1, "garbled": 1}
    assert ours.verdicts.scores.accuracy.hits == 3
    # Bins: 0.9 (unsafe), 0.2 (unsafe), 0.1 and 0.4 (safe): gaps 0.1, 0.8, 0.1, 0.4.
    assert ours.verdicts.calibration_error == pytest.approx((0.1 + 0.8 + 0.1 + 0.4) / 4)
    assert ours.cost.seconds_median == 0.5 and ours.cost.first_token_median is None
    assert arms["plain"].verdicts is None
    by_figure = {entry.figure: entry.difference for entry in comparisons}
    assert by_figure["attack_success"].difference == -0.5 and by_figure["over_refusal"].difference == -0.5
    assert by_figure["right"].first == 0.25 and by_figure["right"].second == 0.5
    # The gravest first: an unsafe answer, then what is garbled; the first mode's answer beside each.
    (plain, steered) = cases
    assert [case.kind for case in steered.cases] == ["unsafe answer", "garbled"]
    assert steered.cases[0].beside == HELPS and plain.cases[0].beside is None
    assert dict(plain.counts) == {"unsafe answer": 2, "wrong refusal": 1}


def test_tables_comparisons_and_cases_count_the_same() -> None:
    """An answer to a safe request may be wrong without refusing, and a judge of harm does not say who refuses."""
    outcomes: dict[Arm, tuple[Outcome, ...]] = {
        PLAIN: ("refuses", "refuses", "helps", "warns", "harmless"),
        OURS: ("warns", "harmful", "harmless", "refuses", "helps"),
    }
    items = [item(number, "safe") for number in range(5)] + [item(9, "unsafe")]
    results = [result(asked, arm, HELPS) for arm in outcomes for asked in items]
    judged = {
        (asked.key, arm.name): Judged(key=asked.key, side=asked.side, category="c", outcome=outcome)
        for arm, said in outcomes.items()
        for asked, outcome in zip(items, (*said, "harmful"), strict=True)
    }
    by_key = {asked.key: asked for asked in items}
    summaries, comparisons = summarise_arms((PLAIN, OURS), results, judged, by_key, seed=0)
    rates = {arm.name: arm.scores.over_refusal for arm in summaries}
    assert {name: (rate.hits, rate.total) for name, rate in rates.items()} == {
        "plain": (2, 4),
        "safecode": (1, 3),
    }
    counts = {
        found.mode: dict(found.counts)
        for found in worst_cases(["plain", "safecode"], results, judged, by_key)
    }
    assert {name: found["wrong refusal"] for name, found in counts.items()} == {"plain": 2, "safecode": 1}
    (paired,) = (entry.difference for entry in comparisons if entry.figure == "over_refusal")
    # Both say so of items 0 and 3 alone.
    assert (paired.items, paired.first, paired.second) == (2, 0.5, 0.5)
    assert (paired.only_first, paired.only_second) == (2, 1)


def test_captions_are_compared_word_for_word() -> None:
    items = [item(n, "none", reference="a kite.") for n in range(3)]
    results = [
        result(asked, PLAIN, text) for asked, text in zip(items, ("a kite.", "a kite", "a dog."), strict=True)
    ]
    arms, comparisons, _ = summed(results, items, (PLAIN,))
    assert (arms["plain"].exact.hits, arms["plain"].exact.total) == (1, 3) and not comparisons


def test_votes_of_people_are_correlated() -> None:
    items = [item(n, "safe", safe_share=share) for n, share in enumerate((0.6, 0.8, 1.0))]
    results = [
        result(asked, OURS, HELPS, p_unsafe=belief, verdict_unsafe=False)
        for asked, belief in zip(items, (0.4, 0.2, 0.0), strict=True)
    ]
    arms, _, _ = summed(results, items, (OURS,))
    assert arms["safecode"].verdicts.correlation == pytest.approx(1)


def whole(results: list[Result], asked: list[EvalItem], **changes: Any) -> tuple[Summary, Any]:
    arms, comparisons, cases = summed(results, asked)
    origin = Provenance(
        command="safecode-trt eval",
        bundle="b",
        bundle_digest="d",
        model_type="idefics3",
        precision="int4",
        source_sha256="0",
        machine=this_machine(1, "null"),
        sampling=SamplingParams(),
        judge="self",
        system="",
        templates="ours",
    )
    made = Summary(
        benchmark="figstep",
        splits=("s",),
        part=None,
        items=len(asked),
        safe=2,
        unsafe=2,
        notes=(),
        answer_judge="matcher",
        arms=tuple(arms.values()),
        comparisons=comparisons,
        provenance=origin,
    )
    return replace(made, **changes), cases


def test_a_reader_is_told_what_is_missing(known: tuple[list[Result], list[EvalItem]]) -> None:
    results, items = known
    summary, _ = whole(results, items, items=5, part="1 of 2", notes=("a note",))
    told = warnings(summary)
    assert told[0] == "a note" and any("part 1 of 2" in line for line in told)
    assert any("plain: 4 of 5 items are answered" in line for line in told)
    assert any("safecode: only 75 % of its answers are well-formed" in line for line in told)
    fallen = [replace(entry, finish_reason="fallback", fallback_reason="NaN") for entry in results]
    told = warnings(whole(fallen, items)[0])
    assert any("plain: 4 replies are the fail-safe's (NaN)" in line for line in told)
    assert findings(summary) == [
        "safecode against plain: unsafe answers 50.0 % instead of 100.0 %, wrong refusals 0.0 % instead of 50.0 %, "
        "well-formed 75.0 % instead of 100.0 %."
    ]


def test_plots_stay_inside(known: tuple[list[Result], list[EvalItem]]) -> None:
    summary, cases = whole(*known)
    page, text = html_report(summary, cases), markdown_report(summary)
    places = [
        float(part.split('%"')[0]) for part in page.split('="')[1:] if part[:1].isdigit() and '%"' in part[:9]
    ]
    assert places and all(0 <= place <= 100 for place in places)
    assert "## Modes" in text and "## Settings and provenance" in text and "nan%" not in page


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Bundle.open(write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")).manifest


def test_every_part_is_switched_off_alone(manifest: Manifest) -> None:
    """A part is one that the settings have; each ablation differs from them in that part only."""
    settings = SafeCodeConfig(
        contrast="vcd", alpha=0.5, beta=0.1, reference="cached", verdict="soft", shift_steps=1
    )
    known = replace(manifest.safecode, settings=settings, refusal_filter=None)
    found = {arm.name.removeprefix("safecode without "): arm for arm in ablations(known)}
    assert found.pop("image-aware verdict").judge == "self-caption"
    assert set(found) == set(PARTS) - {"abstain band", "refusal filter"}
    for part, arm in found.items():
        assert arm.settings == replace(known.settings, **PARTS[part])
    dropped = RefusalFilter(answers=9, share=0.1, dropped=(known.refusal_token_ids[0],), found=(5,))
    (arm,) = set(ablations(replace(known, refusal_filter=dropped))) - set(ablations(known))
    assert arm.settings is not None and not arm.settings.refusal_filter
    assert not ablations(replace(known, settings=SafeCodeConfig(alpha=0.0, shift=0.0)))
    with pytest.raises(ConfigError, match="got plain twice"):
        make_arms(["plain", "plain"], ablate=False, defaults=known)


def test_a_run_is_what_answers_depend_on_and_no_path(tmp_path: Path) -> None:
    asking = Asking(bundle=tmp_path / "a", arms=(PLAIN,), sampling=SamplingParams())
    same = [replace(asking, bundle=tmp_path / "b"), replace(asking, runtime=RuntimeConfig(threads=2))]
    other = [
        replace(asking, system="Be kind."),
        replace(asking, templates="others"),
        replace(asking, sampling=SamplingParams(seed=1)),
    ]
    run = asking.run_of(PLAIN, "d")
    assert {entry.run_of(PLAIN, "d") for entry in same} == {run}
    runs = [
        *(entry.run_of(PLAIN, "d") for entry in other),
        asking.run_of(PLAIN, "e"),
        asking.run_of(OURS, "d"),
    ]
    assert len({run, *runs}) == 6


def test_other_tools_make_the_same_bundle(manifest: Manifest) -> None:
    digest = bundle_digest(manifest)
    assert bundle_digest(replace(manifest, tools={"onnx": "9"})) == digest
    settings = replace(manifest.safecode, settings=replace(manifest.safecode.settings, alpha=0.9))
    assert bundle_digest(replace(manifest, safecode=settings)) != digest


def test_a_judge_is_part_of_the_run_and_its_secrets_are_not_shown(tmp_path: Path) -> None:
    judges = ("self", "endpoint:https://a.example/v1?key=secret#model")
    asking = Asking(
        bundle=tmp_path, arms=(OURS,), sampling=SamplingParams(), judge=JudgeConfig(judges=judges)
    )
    assert asking.judge_name == "max of self, endpoint:https://a.example/v1#model"
    plain = replace(asking, judge=JudgeConfig())
    assert plain.run_of(OURS, "d") != asking.run_of(OURS, "d")
    captions = replace(OURS, judge="self-caption")
    assert asking.judge_of(captions).judges == ("self-caption",)


def test_a_file_of_verdicts_is_part_of_the_run_by_its_content(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path, p in zip(files, (0.5, 0.5, 0.75), strict=True):
        path.write_text(f'{{"key": "k", "p_unsafe": {p}}}\n')
    asking = Asking(bundle=tmp_path, arms=(OURS,), sampling=SamplingParams())
    first, moved, other = (
        replace(asking, judge=JudgeConfig(judges=(f"file:{path}",))).run_of(OURS, "d") for path in files
    )
    assert first == moved != other


def test_a_backend_is_named_with_its_engines(manifest: Manifest) -> None:
    entry = EngineEntry(
        flavour="tensorrt",
        version="10.0",
        compute_capabilities=("86",),
        precision="fp32",
        activations="fp32",
        attention="portable",
        capacity=64,
        graphs={},
    )
    built = [replace(manifest, engines=(replace(entry, capacity=size),)) for size in (64, 128)]
    assert backend_name("ort-cpu", built[0]) == backend_name("ort-cpu", built[1]) == "ort-cpu"
    assert len({backend_name("trt", each) for each in (manifest, *built)}) == 3


def test_an_item_s_seed_depends_on_nothing_else() -> None:
    sampling = SamplingParams(seed=3, temperature=0.5)
    first, again = item_seed(sampling, "a/b"), item_seed(sampling, "a/b")
    assert first == again and first.temperature == 0.5
    assert (
        len({first.seed, item_seed(sampling, "a/c").seed, item_seed(SamplingParams(seed=4), "a/b").seed}) == 3
    )
