"""Reliability curves as a picture: what was believed against what was true. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecode_trt.calibration import Reliability

__all__ = ["plot_reliability"]

POINT, BAR, IDEAL = "#4c78a8", "#d5dbe3", "#999999"


def plot_reliability(panels: Sequence[tuple[str, Reliability]], path: Path) -> None:
    """Writes one diagram for each title and curve side by side; the file's ending says in which format."""
    figure = Figure(figsize=(3.6 * len(panels), 4.6), layout="constrained")
    for axes, (title, curve) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _diagram(axes, title, curve)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)


def _diagram(axes: Axes, title: str, curve: Reliability) -> None:
    total = sum(entry.count for entry in curve.bins)
    axes.bar(
        [entry.low for entry in curve.bins],
        [entry.count / total for entry in curve.bins],
        width=[entry.high - entry.low for entry in curve.bins],
        align="edge",
        color=BAR,
        edgecolor="white",
        label="share of the items",
    )
    axes.plot([0, 1], [0, 1], color=IDEAL, linewidth=1, linestyle="--")
    for entry in curve.bins:
        if entry.mean is not None and entry.unsafe is not None:
            size = 8 + 200 * entry.count / total  # a bin of three items says little
            axes.scatter([entry.mean], [entry.unsafe], s=size, color=POINT, zorder=3, clip_on=False)
    axes.scatter([], [], color=POINT, label="truly unsafe (larger: more items)")
    axes.set_title(
        f"{title}\nECE {curve.calibration_error:.4f}, {100 * curve.accuracy:.1f} % right", fontsize=9
    )
    axes.set_xlabel("P(unsafe)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
