"""The modes by name: the only place that knows which stages and settings a mode is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from safecode_trt.config import MODES, PAPER, STAGES, Mode, SafeCodeConfig, StageName
from safecode_trt.errors import ConfigError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.ops.reference import Ids
from safecode_trt.policy.base import Fallback, Policy
from safecode_trt.policy.contrast import picture_contrast, principle_contrast, reverse_contrast
from safecode_trt.policy.gate import GateStage, verdict_text_stage
from safecode_trt.policy.modulation import ShiftStage
from safecode_trt.policy.plain import PlainPolicy
from safecode_trt.policy.release import release_stage
from safecode_trt.policy.stage import Stage
from safecode_trt.policy.staged import JudgeRow, StagedPolicy

__all__ = ["make_policy", "mode_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A mode: its stages in order, and its settings, by default the bundle's."""

    stages: tuple[StageName, ...]
    settings: SafeCodeConfig | None = None


METHODS: Mapping[Mode, Method] = {
    "plain": Method(stages=()),
    "vcd": Method(
        stages=("contrast",),
        settings=SafeCodeConfig(contrast="vcd", alpha=1.0, beta=0.1, noise_step=500, contrast_steps=None),
    ),
    "safecode-paper": Method(stages=("contrast", "shift"), settings=PAPER),
    "safecode-release": Method(stages=("release",), settings=PAPER),
    "safecode": Method(stages=("contrast", "shift")),
    "verdict-in-prompt": Method(stages=("verdict-text",)),
    "verdict-gate": Method(stages=("gate",)),
    "rose": Method(stages=("reverse",), settings=SafeCodeConfig(guidance=0.5)),
    "cfg": Method(stages=("principle",), settings=SafeCodeConfig(guidance=0.5)),
    "coca": Method(stages=("principle",), settings=SafeCodeConfig(guidance=1.0)),
}


def mode_settings(mode: Mode, defaults: SafeCodeDefaults) -> SafeCodeConfig:
    """The settings that a mode has unless others are given: its own, or those of the bundle."""
    return _method(mode).settings or defaults.settings


def make_policy(
    mode: Mode,
    defaults: SafeCodeDefaults,
    *,
    settings: SafeCodeConfig | None = None,
    stages: Sequence[StageName] | None = None,
) -> Policy:
    """The policy of a mode for the model whose `defaults` these are.

    `settings` and `stages`, in their order, replace those of the mode. A stage whose weight or number of steps is 0
    is left out with its contexts; with all left out the reply is plain decoding, bit for bit. `plain` uses of the
    settings only the fallback, where `plain` becomes `error`: plain decoding cannot fall back on itself.

    Raises:
        ConfigError: the mode or a stage is unknown, stages do not go together, or the defaults lack what one needs.
    """
    names = _method(mode).stages if stages is None else tuple(stages)
    settings = settings or mode_settings(mode, defaults)
    text = defaults.fallback_refusal
    if not names:
        kind = "error" if settings.fallback == "plain" else settings.fallback
        return PlainPolicy(fallback=Fallback(kind=kind, text=text))
    _check_stages(names, settings)
    made = [stage for name in names if (stage := MAKERS[name](settings, defaults)) is not None]
    judged = any(stage.judged for stage in made)
    if judged:
        _check_judge(defaults)
    return StagedPolicy(
        made,
        judge=JudgeRow(defaults=defaults, threshold=settings.threshold if judged else None),
        fallback=Fallback(kind=settings.fallback, text=text),
        abstain=settings.abstain if judged else (),
    )


def _method(mode: Mode) -> Method:
    if mode not in METHODS:
        raise ConfigError(f"must be one of {', '.join(MODES)}, got {mode!r}", field="mode")
    return METHODS[mode]


def _contrast(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage | None:
    off = settings.alpha == 0 or settings.contrast_steps == 0
    return None if off else picture_contrast(settings)


def _shift(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage | None:
    if settings.shift == 0 or settings.shift_steps == 0:
        return None
    return ShiftStage(judged=True, settings=settings, refusal_ids=_refusal_ids(settings, defaults))


def _gate(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage:
    return GateStage(judged=True, text=defaults.fallback_refusal)


def _verdict_text(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage:
    return verdict_text_stage(defaults.prompts)


def _reverse(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage | None:
    off = settings.guidance == 0 or settings.guidance_steps == 0
    return None if off else reverse_contrast(settings, defaults.prompts)


def _principle(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage | None:
    off = settings.guidance == 0 or settings.guidance_steps == 0
    return None if off else principle_contrast(settings, defaults.prompts)


def _release(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Stage:
    phrases = tuple(zip(defaults.refusal_phrases, defaults.refusal_tokens, strict=False))
    short = len(phrases) < len(defaults.refusal_phrases)
    if not phrases or short or not all(ids and min(ids) >= 0 for _, ids in phrases):
        raise ConfigError(
            "safecode-release needs refusal phrases of one or more tokens each",
            fix="give some with --refusals",
        )
    return release_stage(settings, phrases)


MAKERS: Mapping[StageName, Callable[[SafeCodeConfig, SafeCodeDefaults], Stage | None]] = {
    "contrast": _contrast,
    "shift": _shift,
    "gate": _gate,
    "verdict-text": _verdict_text,
    "reverse": _reverse,
    "principle": _principle,
    "release": _release,
}


def _check_stages(names: Sequence[StageName], settings: SafeCodeConfig) -> None:
    for name in names:
        if name not in MAKERS:
            raise ConfigError(f"must be out of {', '.join(STAGES)}, got {name!r}", field="stages")
    if twice := [a for a, b in pairwise(sorted(names)) if a == b]:
        raise ConfigError(f"must name each stage once, got {twice[0]!r} twice", field="stages")
    if "release" in names:
        if len(names) > 1:
            raise ConfigError(
                "must be release alone: it is a whole method and goes with no other stage", field="stages"
            )
        if settings.shift > 2:
            raise ConfigError(
                f"must be at most 2 with the stage release, got {settings.shift:g}", field="shift"
            )
        if not settings.contrast_steps or settings.reference != "noised":
            key = "reference" if settings.contrast_steps else "contrast_steps"
            rule = "noised" if settings.contrast_steps else "1 or more, or null for all,"
            given = getattr(settings, key)
            raise ConfigError(f"must be {rule} with the stage release, got {given!r}", field=key)
    acting = {"verdict-text", "release"} & set(names)
    if acting and settings.abstain:
        raise ConfigError(
            f"must be empty with the stage {acting.pop()}, which always acts on the verdict", field="abstain"
        )


def _refusal_ids(settings: SafeCodeConfig, defaults: SafeCodeDefaults) -> Ids:
    ids, found = defaults.refusal_token_ids, defaults.refusal_filter
    if not ids or min(ids) < 0:
        raise ConfigError(
            f"must be one or more ids of 0 or more for a verdict to act on, got {ids!r}",
            field="refusal_token_ids",
            fix="set shift to 0 to decode without a verdict",
        )
    dropped = set(found.dropped) if found is not None and settings.refusal_filter else set()
    kept = np.array(sorted(set(ids) - dropped), np.int64)
    if not len(kept):
        raise ConfigError(
            "the filter leaves no refusal token", fix="set refusal_filter to false, or give other phrases"
        )
    return kept


def _check_judge(defaults: SafeCodeDefaults) -> None:
    if defaults.safe_token_id == defaults.unsafe_token_id or not defaults.judge_template.strip():
        raise ConfigError("a verdict needs a judge_template and two different tokens, safe and unsafe")
