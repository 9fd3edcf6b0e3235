"""The sweep that explains the demo's settings: what is varied, on the validation split only, and the picture of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecode_trt.config import PAPER, SafeCodeConfig
from safecode_trt.eval.arms import Arm
from safecode_trt.eval.summary import ArmSummary

__all__ = ["UNCALIBRATED", "Line", "candidates", "draw", "errors", "lines", "sweep_arms"]

SIGMAS = (0.03, 0.1, 0.3, 0.6, 1.0)
SHIFTS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
ALPHAS = (0.1, 0.3, 0.6, 1.0)
STEPS = (1, 2, 3, 5)
PANELS = ("sigma", "shift", "alpha", "shift_steps")
UNCALIBRATED = "safecode without calibration"
COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2")


@dataclass(frozen=True, kw_only=True)
class Line:
    """Arms along one setting, by its name on the command line, and the arm's settings by the setting's value."""

    setting: str
    name: str
    points: Mapping[float, SafeCodeConfig]

    def arm(self, value: float) -> str:
        return f"{self.name}, {self.setting} {value:g}"


def lines() -> Iterator[Line]:
    """What is varied: each setting is a panel."""
    verdict = SafeCodeConfig(alpha=0.0, contrast_steps=0, shift_steps=1)
    contrast = SafeCodeConfig(shift=0.0, shift_steps=0)
    masked = SafeCodeConfig(contrast="vcd", alpha=1.0, beta=0.1, shift=0.0, shift_steps=0, contrast_steps=5)
    yield _line("contrast only, alpha 0.3", contrast, "sigma", SIGMAS)
    yield _line("contrast only, vcd, alpha 1, beta 0.1", masked, "sigma", SIGMAS)
    yield _line("paper", PAPER, "sigma", SIGMAS)
    yield _line("verdict only", verdict, "shift", SHIFTS)
    yield _line("paper", PAPER, "shift", SHIFTS)
    yield _line("paper, sigma 1", _with(PAPER, sigma=1.0), "shift", SHIFTS)
    hidden = _with(contrast, sigma=1.0)
    yield _line("contrast only, sigma 1", hidden, "alpha", ALPHAS)
    yield _line("contrast only, sigma 1, beta 0.1", _with(hidden, beta=0.1), "alpha", ALPHAS)
    yield _line("verdict only, shift 3", _with(verdict, shift=3.0), "shift_steps", STEPS)
    yield _line("paper, shift 8", _with(PAPER, shift=8.0), "shift_steps", STEPS)


def candidates() -> Iterator[Arm]:
    """What the default mode's settings were chosen from."""
    contrasts = [(0.0, 0.0), *product((0.5, 1.0), (0.03, 0.1))]
    for (alpha, beta), shift in product(contrasts, (2.0, 3.0, 5.0)):
        settings = SafeCodeConfig(
            contrast="vcd",
            alpha=alpha,
            beta=beta,
            sigma=1.0,
            reference="cached",
            verdict="soft",
            shift=shift,
            contrast_steps=1,
            shift_steps=1,
        )
        contrast = f"vcd, alpha {alpha:g}, beta {beta:g}" if alpha else "no contrast"
        yield Arm(name=f"{contrast}, soft verdict, shift {shift:g}", mode="safecode", settings=settings)


def sweep_arms() -> tuple[Arm, ...]:
    """Plain decoding, the default mode with its raw verdict too, its candidates, and each point of each line."""
    points = {line.arm(value): line.points[value] for line in lines() for value in line.points}
    swept = (Arm(name=name, mode="safecode", settings=settings) for name, settings in points.items())
    raw = Arm(name=UNCALIBRATED, mode="safecode", calibrated=False)
    return (
        Arm(name="plain", mode="plain"),
        Arm(name="safecode", mode="safecode"),
        raw,
        *candidates(),
        *swept,
    )


def draw(summaries: Mapping[str, ArmSummary], path: Path) -> None:
    """Four panels: the mean of both errors along each setting, dashed the answers that are not well-formed."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = dict(zip(PANELS, figure.subplots(2, 2).flat, strict=True))
    plain = errors(summaries["plain"])
    for name, axes in panels.items():
        shown = [line for line in lines() if line.setting == name]
        for line, colour in zip(shown, COLOURS, strict=False):
            _draw_line(axes, line, summaries, colour)
        axes.axhline(100 * plain, color="#888888", linewidth=1, linestyle=":", label="plain")
        axes.set_xlabel(name)
        axes.set_ylabel("%")
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
        if name in ("sigma", "shift"):
            axes.set_xscale("log")
        values = sorted({value for line in shown for value in line.points})
        axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        axes.minorticks_off()
        axes.legend(fontsize=8)
    figure.suptitle(
        "validation split: mean of unsafe answers and wrong refusals; dashed: not well-formed", fontsize=11
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def errors(arm: ArmSummary) -> float:
    """The mean of unsafe answers and wrong refusals."""
    both = [arm.scores.attack_success.share, arm.scores.over_refusal.share]
    return sum(share for share in both if share is not None) / 2


def _draw_line(axes: Axes, line: Line, summaries: Mapping[str, ArmSummary], colour: str) -> None:
    values = sorted(line.points)
    arms = [summaries[line.arm(value)] for value in values]
    garbled = [100 * (1 - (arm.scores.well_formed.share or 0.0)) for arm in arms]
    axes.plot(values, [100 * errors(arm) for arm in arms], "o-", color=colour, markersize=4, label=line.name)
    axes.plot(values, garbled, "--", color=colour, linewidth=1)


def _line(name: str, base: SafeCodeConfig, setting: str, values: tuple[float, ...]) -> Line:
    points = {value: _with(base, **{setting: value}) for value in values}
    return Line(setting=setting, name=name, points=points)


def _with(base: SafeCodeConfig, **changes: object) -> SafeCodeConfig:
    return replace(base, **changes)  # type: ignore[arg-type]
