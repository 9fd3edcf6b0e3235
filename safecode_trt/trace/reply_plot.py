"""A recorded reply as one picture: the verdict, and the ranks of the leading tokens in every step. Needs matplotlib."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecode_trt.policy.base import Verdict
from safecode_trt.trace.reading import STAGES, Ranked, Stage, judged, ranked, reading, shown_text
from safecode_trt.trace.reply_record import RecordedStep, ReplyRecord

__all__ = ["plot_reply"]

CHOSEN, RAISED, LOWERED, OTHER = "#0072b2", "#d55e00", "#009e73", "#9a9a9a"
COLUMNS = 3
INCHES = 5.2, 3.0
HEAD_INCHES = 2.5
TOKEN = 18
LINE = 150


def plot_reply(record: ReplyRecord, path: Path, *, steps: int) -> None:
    """Writes the picture with at most `steps` steps; the file's ending says in which format."""
    shown = record.steps[:steps]
    rows = max(1, -(-len(shown) // COLUMNS))
    columns = max(2, min(len(shown), COLUMNS))
    figure = Figure(figsize=(INCHES[0] * columns, HEAD_INCHES + INCHES[1] * (rows if shown else 0)))
    height = figure.get_figheight()
    _head(figure, record, len(record.steps) - len(shown))
    if record.verdict is not None:
        _verdict(figure.add_axes((0.2, 1 - 2.0 / height, 0.6, 0.2 / height)), record.verdict)
    if shown:
        grid = figure.add_gridspec(
            rows, columns, left=0.02, right=0.98, bottom=0.4 / height, top=1 - (HEAD_INCHES + 0.35) / height
        )
        most = max(4, *(len(step.candidates) for step in shown))
        for number, step in enumerate(shown):
            _step(figure.add_subplot(grid[divmod(number, columns)]), step, most)
        _legend(figure, height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box is shown in its place
        figure.savefig(path, dpi=100)


def _head(figure: Figure, record: ReplyRecord, hidden: int) -> None:
    asked = record.messages[-1].text if record.messages else ""
    width = round(LINE * figure.get_figwidth() / (COLUMNS * INCHES[0]))
    lines = [
        (_line(f"request: {asked}", width), "bold"),
        (_line(f"answer ({record.mode}): {record.text}", width), "bold"),
        (
            _line(reading(record) + (f"; {hidden} more steps are not drawn" if hidden else ""), width),
            "normal",
        ),
    ]
    for number, (line, weight) in enumerate(lines):
        y = 1 - (0.25 + 0.3 * number) / figure.get_figheight()
        figure.text(0.02, y, line, fontsize=11, weight=weight, va="center", parse_math=False)


def _line(text: str, width: int) -> str:
    visible = shown_text(" ".join(text.split()))[1:-1]
    return textwrap.shorten(visible, width, placeholder=" ...")


def _verdict(axes: Axes, verdict: Verdict) -> None:
    """The scale from safe to unsafe: the verdict above it, the threshold below."""
    axes.axvspan(0, verdict.threshold, color=LOWERED, alpha=0.25, lw=0)
    axes.axvspan(verdict.threshold, 1, color=RAISED, alpha=0.25, lw=0)
    axes.axvline(verdict.threshold, color="black", lw=1.5)
    axes.plot(verdict.p_unsafe, 0.5, "D", color="black", markersize=8, clip_on=False)
    axes.annotate(
        f"{judged(verdict)}: p_unsafe {verdict.p_unsafe:.3f}",
        (verdict.p_unsafe, 1.35),
        ha=_towards_middle(verdict.p_unsafe),
        va="bottom",
        fontsize=10,
        weight="bold",
        annotation_clip=False,
    )
    axes.annotate(
        f"threshold {verdict.threshold:.2f}",
        (verdict.threshold, -0.35),
        ha=_towards_middle(verdict.threshold),
        va="top",
        fontsize=9,
        annotation_clip=False,
    )
    axes.text(-0.02, 0.5, "verdict: safe 0", ha="right", va="center", fontsize=9)
    axes.text(1.02, 0.5, "1 unsafe", ha="left", va="center", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])


def _towards_middle(share: float) -> str:
    return "left" if share < 0.15 else "right" if share > 0.85 else "center"


def _step(axes: Axes, step: RecordedStep, most: int) -> None:
    """One column for each stage, a row for each rank, and a line for each token from its first to its last rank."""
    seen = ranked(step)
    stages = [stage for stage in STAGES if any(stage in each.ranks for each in seen)]
    for place, each in reversed(list(enumerate(seen, 1))):  # the leading token's line on top
        _token(axes, each, stages, place)
    for x, stage in enumerate(stages):
        axes.text(x, 0.4, stage, ha="center", va="baseline", fontsize=9, style="italic")
    axes.set_title(f"step {step.step + 1}", fontsize=10, weight="bold", loc="left", pad=2)
    axes.set(xlim=(-0.6, len(stages) + 1.0), ylim=(most + 0.5, 0))
    axes.set_axis_off()


def _token(axes: Axes, each: Ranked, stages: list[Stage], place: int) -> None:
    colour, shift = _colour(each), each.candidate.shift
    bold = "bold" if each.chosen else "normal"
    points = [(x, each.ranks[stage]) for x, stage in enumerate(stages) if stage in each.ranks]
    axes.plot(*zip(*points, strict=True), color=colour, lw=3 if each.chosen else 1.2, alpha=0.55, zorder=1)
    for x, stage in enumerate(stages):
        if stage in each.ranks:
            axes.text(
                x,
                each.ranks[stage],
                f"{each.logits[stage]:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                weight=bold,
                color=colour if colour != OTHER else "black",
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
            )
    label = (f"{shift:+.2f}  " if shift else "out  " if "final" not in each.ranks else "") + shown_text(
        each.candidate.text, TOKEN
    )
    axes.text(
        len(stages) - 0.6,
        place,
        label,
        va="center",
        fontsize=9,
        weight=bold,
        color=colour if colour != OTHER else "black",
        parse_math=False,
    )


def _colour(each: Ranked) -> str:
    shift = -1.0 if each.candidate.shift is None else each.candidate.shift
    return RAISED if shift > 0 else LOWERED if shift < 0 else CHOSEN if each.chosen else OTHER


def _legend(figure: Figure, height: float) -> None:
    entries = (
        (CHOSEN, "chosen: bold"),
        (RAISED, "raised by the verdict"),
        (LOWERED, "lowered by the verdict"),
        ("black", "logits, the largest on top; ranks among the tokens recorded"),
    )
    x = 0.02
    for colour, text in entries:
        figure.text(x, 0.15 / height, text, color=colour, fontsize=9, va="center")
        x += (len(text) + 4) * 0.085 / figure.get_figwidth()
