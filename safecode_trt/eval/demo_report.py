"""The demo's report: one self-contained HTML page with the pictures, both answers and every steered step."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from safecode_trt.eval.demo_scenes import Answered
from safecode_trt.manifest import Manifest
from safecode_trt.policy.base import StepTrace

__all__ = ["demo_report"]

SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One candidate of a step: its share among the shown ones before, between and after the stages."""

    token: str
    refusal: bool
    picture: float
    contrast: float
    final: float


def demo_report(
    answered: Sequence[Answered], manifest: Manifest, *, token_text: Callable[[int], str], version: str
) -> str:
    """The page as HTML text; it loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("safecode_trt.eval"), autoescape=True, undefined=StrictUndefined
    )
    refusals = frozenset(manifest.safecode.refusal_token_ids)
    cards = [
        {
            "item": item,
            "picture": _data_url(item.picture),
            "steps": [_bars(step, refusals, token_text) for step in item.safecode.trace],
        }
        for item in answered
    ]
    template = environment.get_template("demo_report.html.jinja")
    return template.render(
        cards=cards, manifest=manifest, settings=manifest.safecode.settings, version=version
    )


def _bars(step: StepTrace, refusals: frozenset[int], token_text: Callable[[int], str]) -> list[Bar]:
    shown = step.candidates[:SHOWN]
    shares = [
        _softmax([candidate.z_real for candidate in shown]),
        _softmax([candidate.z_contrast for candidate in shown]),
        _softmax([candidate.z_final for candidate in shown]),
    ]
    return [
        Bar(
            token=token_text(candidate.token_id),
            refusal=candidate.token_id in refusals,
            picture=shares[0][i],
            contrast=shares[1][i],
            final=shares[2][i],
        )
        for i, candidate in enumerate(shown)
    ]


def _softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) if math.isfinite(value) else 0.0 for value in values]
    return [weight / sum(weights) for weight in weights]


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
