"""Measures a demo bundle on the demo world and writes docs/results-demo.md: sweep, modes, ablations, verdicts.

Settings are looked at on the validation split; the test split is only reported. The bias is put into the model by
its training data: the figures show that the mechanism works, and are no evidence about real models. Answers are kept
in --work, and an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo_sweep import PANELS, UNCALIBRATED, candidates, draw, errors, lines, sweep_arms
from safecode_trt.bench.bench_report import machine_line
from safecode_trt.bundle import Bundle
from safecode_trt.config import MODES, RuntimeConfig, SamplingParams
from safecode_trt.eval.arms import Arm, make_arms
from safecode_trt.eval.benchmarks import read_benchmark
from safecode_trt.eval.benchmarks.demo_world import CAPTIONS
from safecode_trt.eval.evaluate import Workers, answer_items
from safecode_trt.eval.judging import Matcher, judge_results
from safecode_trt.eval.reliability import calibration_error, fit_temperature, tempered
from safecode_trt.eval.report_tables import percent
from safecode_trt.eval.results import Result
from safecode_trt.eval.runner import RunnerConfig
from safecode_trt.eval.summary import ArmSummary, summarise_arms
from safecode_trt.machine import this_machine
from safecode_trt.runtime.judges import JudgeConfig
from safecode_trt.text_table import TextTable, markdown
from write_demo_items import write_items

SAMPLING = SamplingParams(max_new_tokens=32)
IMAGE = "results-demo.png"
CAVEAT = (
    "The demo model is a toy of a drawn world, and the bias was put into it by its training data. The figures show "
    "that the mechanism works and when it fails; they are no evidence about real models."
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of every arm on one split, and the results that they are of."""

    arms: Mapping[str, ArmSummary]
    results: tuple[Result, ...]


def measure(bundle: Path, work: Path, split: str, arms: Sequence[Arm], count: int) -> Measured:
    """Answers the first items of a split in every arm; what is in `work` is not asked again."""
    found = read_benchmark("demo-world", work / "world", splits=[split])
    items = found.items[:count]
    config = RunnerConfig(
        bundle=bundle, arms=tuple(arms), sampling=SAMPLING, runtime=RuntimeConfig(threads=1)
    )
    began = time.monotonic()

    def progress(step: str, done: int, total: int) -> None:
        if done % 200 == 0 or done == total:
            left = (time.monotonic() - began) / done * (total - done)
            print(f"{split}: {done} of {total} answers, {left:.0f} s left", file=sys.stderr)

    answers = answer_items(config, items, work / split, workers=Workers(), progress=progress)
    by_key = {item.key: item for item in items}
    matcher = Matcher(possible=found.possible)
    judged = judge_results(answers.results, by_key, matcher, kept=work / split / "judgements.jsonl")
    summaries, _ = summarise_arms(arms, answers.results, judged, by_key, seed=0)
    return Measured(arms={arm.name: arm for arm in summaries}, results=answers.results)


def arms_table(title: str, measured: Measured, captions: Measured) -> TextTable:
    """What every arm does on the test split."""
    rows = []
    for name, arm in measured.arms.items():
        verdicts = arm.verdicts
        rows.append(
            (
                name,
                percent(arm.scores.attack_success) or "",
                percent(arm.scores.over_refusal) or "",
                percent(arm.scores.well_formed) or "",
                percent(captions.arms[name].exact) or "",
                "" if verdicts is None else percent(verdicts.scores.accuracy) or "",
                "" if arm.cost is None else f"{arm.cost.tokens_mean:.1f}",
                f"{sum(arm.fallbacks.values())} / {sum(captions.arms[name].fallbacks.values())}",
            )
        )
    columns = (
        "decoding",
        "unsafe answers %",
        "wrong refusals %",
        "well-formed %",
        "captions exact %",
        "verdicts right %",
        "tokens",
        "fail-safe",
    )
    return TextTable(title=title, columns=columns, rows=tuple(rows))


def sweep_table(swept: Measured) -> TextTable:
    """The lines of the sweep: the mean of both errors, and the share that is not well-formed after a slash."""
    rows = []
    for line in lines():
        cells = []
        for value in sorted(line.points):
            arm = swept.arms[line.arm(value)]
            garbled = 100 * (1 - (arm.scores.well_formed.share or 0.0))
            cells.append(
                f"{value:g}: {100 * errors(arm):.1f}" + (f" / {garbled:.0f}" if garbled >= 0.5 else "")
            )
        rows.append((line.name, line.setting, "; ".join(cells)))
    columns = ("decoding", "varied", "value: mean error % / not well-formed %")
    return TextTable(title="Sweep", columns=columns, rows=tuple(rows))


def calibration_table(bundle: Path, validation: Measured, test: Measured) -> TextTable:
    """The verdict's calibration error on test: as it is, fitted on validation, and as the bundle has it."""
    fitted = fit_temperature(*margins_of(validation, UNCALIBRATED))
    margins, truth = margins_of(test, UNCALIBRATED if UNCALIBRATED in test.arms else "safecode")
    temperatures = {"as it is": 1.0, "fitted on these validation items": fitted}
    known = Bundle.open(bundle, check_hashes=False).manifest.safecode.calibration
    if known is not None:
        temperatures["as the bundle is calibrated"] = known.temperature
    rows = tuple(
        (name, f"{heat:.3f}", f"{calibration_error(tempered(margins, heat), truth):.4f}")
        for name, heat in temperatures.items()
    )
    return TextTable(
        title="Calibration of the verdict", columns=("verdict", "temperature", "ECE on test"), rows=rows
    )


def margins_of(measured: Measured, arm: str) -> tuple[list[float], list[bool]]:
    """Log-odds of P(unsafe), and whether helping is unsafe."""
    told = [
        (min(max(result.p_unsafe, 1e-9), 1 - 1e-9), result.side == "unsafe")
        for result in measured.results
        if result.mode == arm and result.p_unsafe is not None
    ]
    return [math.log(belief / (1 - belief)) for belief, _ in told], [unsafe for _, unsafe in told]


def candidates_table(swept: Measured) -> TextTable:
    """The default mode's candidates by their mean error."""
    names = ["safecode", *(arm.name for arm in candidates())]
    ranked = sorted((swept.arms[name] for name in names), key=lambda arm: (errors(arm), arm.name))
    rows = tuple(
        (
            arm.name if arm.name != "safecode" else "safecode, as the bundle has it",
            f"{100 * errors(arm):.1f}",
            percent(arm.scores.attack_success) or "",
            percent(arm.scores.over_refusal) or "",
            percent(arm.scores.well_formed) or "",
        )
        for arm in ranked
    )
    columns = ("decoding", "mean error %", "unsafe answers %", "wrong refusals %", "well-formed %")
    return TextTable(title="Candidates for the default mode, validation split", columns=columns, rows=rows)


def modes_and_ablations(bundle: Path) -> tuple[Arm, ...]:
    """All modes, and the default mode without each of its parts."""
    defaults = Bundle.open(bundle, check_hashes=False).manifest.safecode
    return make_arms(MODES, ablate=True, defaults=defaults, judge=JudgeConfig())


def write_document(output: Path, command: str, counts: tuple[int, int], parts: Sequence[TextTable]) -> None:
    """The page: the sweep first, for it explains the rest."""
    sweep, chosen, modes, calibration = map(markdown, parts)
    test, validation = counts
    machine = machine_line(this_machine(1, "ort-cpu"))
    text = f"""# What the modes do in the demo world

{CAVEAT}

Everything here is made by one command, which keeps its answers and goes on after an interruption:

```sh
{command}
```

Shares are percent with Wilson 95 % intervals. Greedy decoding, the same prompts and seeds everywhere; an answer is
well-formed if it is one of all possible answers of this world, and refuses if the matcher of words says so.
Measured on: {machine}.

{sweep}
{validation} items of the validation split. Behind a stroke: the answers that are not well-formed, where there are any.

![Errors along {", ".join(PANELS)}](images/{IMAGE})

{chosen}
The settings are looked at here, on {validation} items of the validation split, and never on the test split.

{modes}
{test} held-out items of the test split, half of them unsafe, and a caption of every picture. `fail-safe` counts the
replies to requests and to captions that the fallback gave, which are refusals.

{calibration}
P(unsafe) of the mode `safecode`; ECE in ten bins.
"""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument(
        "--work", type=Path, default=Path("build/results-demo"), help="where answers are kept"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results-demo.md"))
    parser.add_argument("--test", type=int, default=600, help="items of the test split")
    parser.add_argument("--validation", type=int, default=200, help="items of the validation split")
    arguments = parser.parse_args()
    bundle, work = arguments.bundle, arguments.work
    counts = {"test": arguments.test, "validation": arguments.validation}
    for split, count in counts.items():
        write_items(work / "world", split, count)

    def ask(split: str, arms: Sequence[Arm]) -> Measured:
        return measure(bundle, work, split, arms, counts[split.removesuffix(CAPTIONS)])

    swept = ask("validation", sweep_arms())
    draw(swept.arms, arguments.output.parent / "images" / IMAGE)
    arms = modes_and_ablations(bundle)
    test, captions = ask("test", arms), ask(f"test{CAPTIONS}", arms)
    tables = [
        sweep_table(swept),
        candidates_table(swept),
        arms_table("Modes and ablations, test split", test, captions),
        calibration_table(bundle, swept, test),
    ]
    options = shlex.join(sys.argv[1:])
    command = f".venv/bin/python tools/results_demo.py {options}".strip()
    write_document(arguments.output, command, (arguments.test, arguments.validation), tables)


if __name__ == "__main__":
    main()
