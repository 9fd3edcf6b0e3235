"""A benchmark as a picture: the ratios with their ranges, and the parts of the longest reply. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecode_trt.bench.bench_result import BenchResult

__all__ = ["plot_bench"]

COLOURS = ("#4c78a8", "#72b7b2", "#e45756", "#bab0ac", "#eeca3b")


def plot_bench(result: BenchResult, path: Path) -> None:
    """Writes the picture; the file's ending says in which format."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _ratios(left, result)
    _shares(right, result)
    figure.suptitle(
        f"{result.bundle.model_type}, {result.bundle.precision}, {result.machine.cpu}", fontsize=10
    )
    figure.savefig(path, dpi=120)


def _ratios(axes: Axes, result: BenchResult) -> None:
    ratios = result.ratios[::-1]
    medians = [ratio.times.median for ratio in ratios]
    below = [ratio.times.median - ratio.times.low for ratio in ratios]
    above = [ratio.times.high - ratio.times.median for ratio in ratios]
    bars = axes.barh([ratio.name for ratio in ratios], medians, color=COLOURS[0])
    axes.errorbar(medians, range(len(ratios)), xerr=[below, above], fmt="none", ecolor="#333333", capsize=2)
    axes.bar_label(
        bars, [f" {median:.2f}x" for median in medians], label_type="center", color="white", fontsize=8
    )
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_xlabel("times the one-row or plain case; whiskers: all rounds")
    axes.tick_params(axis="y", labelsize=8)


def _shares(axes: Axes, result: BenchResult) -> None:
    kinds = list(result.shares[0].milliseconds)
    bottoms = [0.0] * len(kinds)
    for share, colour in zip(result.shares, COLOURS, strict=False):
        if share.part == "whole":
            continue
        heights = [share.milliseconds[kind] for kind in kinds]
        axes.bar(kinds, heights, bottom=bottoms, label=share.part, color=colour)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_ylabel(f"ms of a reply of {max(result.setup.tokens)} tokens")
    axes.legend(fontsize=8)
