"""The arms of an evaluation: ways of decoding that answer the same items with the same prompts, seeds and sampling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safecode_trt.config import Mode, SafeCodeConfig
from safecode_trt.errors import ConfigError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy import make_policy, mode_settings
from safecode_trt.policy.base import Policy

__all__ = ["BASE_MODE", "PARTS", "Arm", "ablations", "arms_of", "make_arms"]

BASE_MODE: Mode = "safecode"
PARTS: Mapping[str, Mapping[str, Any]] = {
    "contrast": {"alpha": 0.0},
    "verdict": {"shift": 0.0},
    "mask": {"beta": 0.0},
    "soft verdict": {"verdict": "hard"},
    "cached reference": {"reference": "noised"},
    "first step only": {"shift_steps": 5},
    "abstain band": {"abstain": ()},
    "refusal filter": {"refusal_filter": False},
}
"""The parts of the default mode, and the settings without each."""


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


def make_arms(modes: Iterable[Mode], *, ablate: bool, defaults: SafeCodeDefaults) -> tuple[Arm, ...]:
    """An arm for each mode, and with `ablate` one for each part of the default mode that is switched off.

    Raises:
        ConfigError: a mode is named twice, unknown, or the bundle lacks what it needs.
    """
    arms = [_mode_arm(mode, defaults) for mode in modes]
    if ablate:
        arms += ablations(defaults)
        if all(arm.name != BASE_MODE for arm in arms):
            raise ConfigError(f"--ablate switches off parts of {BASE_MODE}; add it to --modes")
    return arms_of(arms, defaults)


def _mode_arm(mode: Mode, defaults: SafeCodeDefaults) -> Arm:
    """A mode with its settings written down, unless it carries no context beside the real one and steers nothing."""
    arm = Arm(name=mode, mode=mode)
    steers = len(arm.policy(defaults).plan.contexts) > 1
    return replace(arm, settings=mode_settings(mode, defaults)) if steers else arm


def ablations(defaults: SafeCodeDefaults) -> tuple[Arm, ...]:
    """The default mode without each of its parts alone; a part that the settings do not use makes no arm."""
    filtered = defaults.refusal_filter is not None and bool(defaults.refusal_filter.dropped)
    found = []
    bare = Arm(name=BASE_MODE, mode=BASE_MODE, settings=defaults.settings, base=BASE_MODE)
    for part, without in PARTS.items():
        settings = replace(defaults.settings, **without)
        # A filter that drops nothing is no part of the mode.
        if settings != defaults.settings and (filtered or "refusal_filter" not in without):
            found.append(replace(bare, name=f"{BASE_MODE} without {part}", settings=settings))
    if defaults.settings.shift and defaults.settings.shift_steps != 0:
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
