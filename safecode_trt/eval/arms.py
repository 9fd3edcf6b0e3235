"""The arms of an evaluation: ways of decoding that answer the same items with the same prompts, seeds and sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safecode_trt.config import Mode, SafeCodeConfig
from safecode_trt.errors import ConfigError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy import make_policy, mode_settings
from safecode_trt.policy.base import Policy
from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["BASE_MODE", "PARTS", "Arm", "Part", "ablations", "arms_of", "make_arms"]

BASE_MODE: Mode = "safecode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the default mode: the settings `without` it, and whether settings have it in use."""

    without: Mapping[str, Any]
    used: Callable[[SafeCodeConfig], bool]


def _contrasts(settings: SafeCodeConfig) -> bool:
    return settings.alpha > 0 and settings.contrast_steps != 0


def _shifts(settings: SafeCodeConfig) -> bool:
    return settings.shift > 0 and settings.shift_steps != 0


PARTS: Mapping[str, Part] = {
    "contrast": Part(without={"alpha": 0.0}, used=_contrasts),
    "verdict": Part(without={"shift": 0.0}, used=_shifts),
    "mask": Part(without={"beta": 0.0}, used=lambda have: _contrasts(have) and have.beta > 0),
    "soft verdict": Part(
        without={"verdict": "hard"}, used=lambda have: _shifts(have) and have.verdict == "soft"
    ),
    "cached reference": Part(
        without={"reference": "noised"}, used=lambda have: _contrasts(have) and have.reference == "cached"
    ),
    "first step only": Part(
        without={"shift_steps": 5}, used=lambda have: _shifts(have) and have.shift_steps == 1
    ),
    "abstain band": Part(without={"abstain": ()}, used=lambda have: _shifts(have) and bool(have.abstain)),
    "refusal filter": Part(
        without={"refusal_filter": False}, used=lambda have: _shifts(have) and have.refusal_filter
    ),
}
"""The parts of the default mode that are settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way of decoding. `settings` replace the mode's, None for those; `base` is the arm of which this lacks a part.

    `judge` gives the verdicts instead of the evaluation's. Without `calibrated` the bundle's calibration is not used.
    """

    name: str
    mode: Mode
    settings: SafeCodeConfig | None = None
    base: str | None = None
    judge: str | None = None
    calibrated: bool = True

    def policy(self, defaults: SafeCodeDefaults) -> Policy:
        """The policy for the model whose defaults these are.

        Raises:
            ConfigError: the mode is unknown, or the bundle lacks what it needs.
        """
        known = defaults if self.calibrated else replace(defaults, calibration=None)
        return make_policy(self.mode, known, settings=self.settings)


def make_arms(
    modes: Iterable[Mode], *, ablate: bool, defaults: SafeCodeDefaults, judge: JudgeConfig
) -> tuple[Arm, ...]:
    """An arm for each mode, and with `ablate` one for each part of the default mode that is switched off.

    `judge` is the evaluation's.

    Raises:
        ConfigError: a mode is named twice, unknown, or the bundle lacks what it needs.
    """
    arms = [_mode_arm(mode, defaults) for mode in modes]
    if ablate:
        arms += ablations(defaults, judge)
        if all(arm.name != BASE_MODE for arm in arms):
            raise ConfigError(
                f"switches off parts of {BASE_MODE}, which is not among the modes",
                field="ablate",
                fix=f"add {BASE_MODE} to --modes",
            )
    return arms_of(arms, defaults)


def _mode_arm(mode: Mode, defaults: SafeCodeDefaults) -> Arm:
    """A mode with its settings written down, unless it carries only the real context and steers nothing."""
    arm = Arm(name=mode, mode=mode)
    steers = len(arm.policy(defaults).plan.contexts) > 1
    return replace(arm, settings=mode_settings(mode, defaults)) if steers else arm


def ablations(defaults: SafeCodeDefaults, judge: JudgeConfig) -> tuple[Arm, ...]:
    """The default mode without each of its parts alone; a part that is not in use makes no arm."""
    settings = defaults.settings
    # A filter that drops nothing is no part of the mode.
    idle = set() if defaults.refusal_filter and defaults.refusal_filter.dropped else {"refusal filter"}
    bare = Arm(name=BASE_MODE, mode=BASE_MODE, settings=settings, base=BASE_MODE)
    found = [
        replace(bare, name=f"{BASE_MODE} without {name}", settings=replace(settings, **part.without))
        for name, part in PARTS.items()
        if name not in idle and part.used(settings)
    ]
    # Only the bundle's own judge, alone, sees the picture with this model and reads its calibration.
    if _shifts(settings) and judge.judges == ("self",):
        found.append(replace(bare, name=f"{BASE_MODE} without image-aware verdict", judge="self-caption"))
        if defaults.calibration is not None:
            found.append(replace(bare, name=f"{BASE_MODE} without calibration", calibrated=False))
    return tuple(found)


def arms_of(arms: Iterable[Arm], defaults: SafeCodeDefaults) -> tuple[Arm, ...]:
    """The arms, once every one is known to be usable.

    Raises:
        ConfigError: there is none, a name is there twice, or an arm lacks what it needs.
    """
    listed = tuple(arms)
    names = [arm.name for arm in listed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ConfigError(f"expected every mode once, got {twice[0]} twice" if twice else "expected a mode")
    for arm in listed:
        arm.policy(defaults)
    return listed
