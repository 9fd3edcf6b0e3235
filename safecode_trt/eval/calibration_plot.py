"""Reliability curves as a picture: what was believed against what was true. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecode_trt.calibration import Reliability

__all__ = ["plot_reliability"]

LINE, BAR, IDEAL = "#4c78a8", "#d5dbe3", "#999999"


def plot_reliability(panels: Sequence[tuple[str, Reliability]], path: Path) -> None:
    """Writes one diagram for each title and curve side by side; the file's ending says in which format."""
    figure = Figure(figsize=(4.2 * len(panels), 4.4), layout="constrained")
    for axes, (title, curve) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _diagram(axes, title, curve)
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
    points = [
        (entry.mean, entry.unsafe)
        for entry in curve.bins
        if entry.mean is not None and entry.unsafe is not None
    ]
    axes.plot(*zip(*points, strict=True), color=LINE, marker="o", label="truly unsafe")
    axes.set_title(
        f"{title}\nECE {curve.calibration_error:.4f}, {100 * curve.accuracy:.1f} % right", fontsize=9
    )
    axes.set_xlabel("P(unsafe)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    axes.legend(fontsize=8, loc="upper left")
