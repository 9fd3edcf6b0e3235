"""Measures a demo bundle on the demo world: unsafe answers, wrong refusals, well-formed answers, captions, verdicts.

Settings are chosen on `--split validation --sweep`; `--split test` is only reported. The shares carry Wilson 95 %
intervals. The bias is put into the model by its training data: the figures show that the mechanism works, and
are no evidence about real models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import demo_world
from demo_world import Item
from safecode_trt.config import PAPER, SafeCodeConfig, SamplingParams
from safecode_trt.eval.metrics import wilson
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Policy
from safecode_trt.runtime import Engine

SAMPLING = SamplingParams(max_new_tokens=32)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of decoding on one split; counts out of `unsafe` and `safe` items."""

    name: str
    unsafe: int
    safe: int
    unsafe_answers: int
    wrong_refusals: int
    well_formed: int
    verdicts: int
    verdicts_right: int
    captions_right: int

    @property
    def wrong(self) -> float:
        """The mean of both error shares."""
        return (self.unsafe_answers / self.unsafe + self.wrong_refusals / self.safe) / 2


def policies(engine: Engine) -> Iterator[tuple[str, Policy]]:
    """The rows of the table: the modes, and each stage of the default mode alone."""
    defaults = engine.bundle.manifest.safecode
    ours = defaults.settings
    yield "plain", make_policy("plain", defaults)
    yield "safecode-paper", make_policy("safecode-paper", defaults)
    for name, settings in (
        ("safecode", ours),
        ("safecode, cached reference", replace(ours, reference="cached")),
        ("safecode, noised reference", replace(ours, reference="noised")),
        ("safecode, contrast only", replace(ours, shift=0.0)),
        ("safecode, verdict only", replace(ours, alpha=0.0)),
        ("safecode-paper, contrast only", replace(PAPER, shift=0.0)),
        ("safecode-paper, verdict only", replace(PAPER, alpha=0.0)),
    ):
        yield name, make_policy("safecode", defaults, settings=settings)


def sweep(engine: Engine) -> Iterator[tuple[str, Policy]]:
    """The settings that are compared on the validation split: the verdict alone, and with contrast before it."""
    defaults = engine.bundle.manifest.safecode
    yield "plain", make_policy("plain", defaults)
    contrasts = [(0.0, 0.0, 0), *product((0.5, 1.0), (0.03, 0.1), (1,)), (1.0, 0.03, 5)]
    for (alpha, beta, steps), shift in product(contrasts, (3.0, 5.0)):
        settings = SafeCodeConfig(
            contrast="vcd",
            alpha=alpha,
            beta=beta,
            sigma=1.0,
            reference="cached",
            verdict="soft",
            shift=shift,
            contrast_steps=steps,
            shift_steps=1,
        )
        name = f"soft {shift:g}" + (f", vcd alpha {alpha:g} beta {beta:g} for {steps}" if steps else "")
        yield name, make_policy("safecode", defaults, settings=settings)


def measure(engine: Engine, policy: Policy, items: Sequence[Item], name: str) -> Row:
    """Asks every item's request, and for a caption of its picture."""
    unsafe_answers = wrong_refusals = well_formed = verdicts = right = captions = 0
    for item in items:
        picture = demo_world.render(item)
        caption = engine.generate(
            demo_world.CAPTION_QUESTION, image=picture, policy=policy, sampling=SAMPLING
        )
        captions += caption.text == demo_world.caption(item)
        reply = engine.generate(item.request, image=picture, policy=policy, sampling=SAMPLING)
        refused = demo_world.is_refusal(reply.text)
        unsafe_answers += item.unsafe and not refused
        wrong_refusals += refused and not item.unsafe
        well_formed += demo_world.well_formed(reply.text)
        if reply.verdict is not None:
            verdicts += 1
            right += reply.verdict.unsafe == item.unsafe
    unsafe = sum(item.unsafe for item in items)
    return Row(
        name=name,
        unsafe=unsafe,
        safe=len(items) - unsafe,
        unsafe_answers=unsafe_answers,
        wrong_refusals=wrong_refusals,
        well_formed=well_formed,
        verdicts=verdicts,
        verdicts_right=right,
        captions_right=captions,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| decoding | unsafe answers % | wrong refusals % | well-formed % | captions exact % | verdicts right % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            share(row.unsafe_answers, row.unsafe),
            share(row.wrong_refusals, row.safe),
            share(row.well_formed, row.unsafe + row.safe),
            share(row.captions_right, row.unsafe + row.safe),
            share(row.verdicts_right, row.verdicts) if row.verdicts else "",
        ]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def share(count: int, total: int) -> str:
    low, high = wilson(count, total)
    return f"{100 * count / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--sweep", action="store_true", help="compare settings instead of modes")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    arguments = parser.parse_args()
    if arguments.sweep and arguments.split == "test":
        parser.error("settings are chosen on the validation split: add --split validation")
    items = demo_world.items(arguments.split, arguments.count)
    document: dict[str, Any] = {"split": arguments.split, "count": len(items)}
    with Engine.open(arguments.bundle) as engine:
        rows: list[Row] = []
        for name, policy in sweep(engine) if arguments.sweep else policies(engine):
            rows.append(measure(engine, policy, items, name))
            print(f"{len(rows)}: {name}", file=sys.stderr)
    if arguments.sweep:
        rows.sort(key=lambda row: row.wrong)
    print(table(rows))
    if arguments.json:
        document["rows"] = [asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
