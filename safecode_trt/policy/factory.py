"""The modes by name: the only place that knows which policy a mode is."""

from __future__ import annotations

from safecode_trt.config import MODES, PAPER, Mode, SafeCodeConfig
from safecode_trt.errors import ConfigError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy.base import Fallback, Policy
from safecode_trt.policy.plain import PlainPolicy
from safecode_trt.policy.safecode import SafeCodePolicy

__all__ = ["make_policy"]


def make_policy(mode: Mode, defaults: SafeCodeDefaults, *, settings: SafeCodeConfig | None = None) -> Policy:
    """The policy of a mode for the model whose `defaults` these are; `settings` replace those of the mode.

    `safecode` takes the bundle's settings and `safecode-paper` the paper's. `plain` uses of the settings only
    the fallback, where `plain` becomes `error`: plain decoding cannot fall back on itself.

    Raises:
        ConfigError: the mode is unknown, or the defaults lack what it needs.
    """
    if mode == "safecode-paper":
        return SafeCodePolicy(defaults, settings or PAPER)
    if mode == "safecode":
        return SafeCodePolicy(defaults, settings or defaults.settings)
    if mode == "plain":
        kind = (settings or defaults.settings).fallback
        return PlainPolicy(
            fallback=Fallback(kind="error" if kind == "plain" else kind, text=defaults.fallback_refusal)
        )
    raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
