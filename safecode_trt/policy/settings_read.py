"""Which settings a policy reads: found by making it and by acting on a safe and on an unsafe verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from safecode_trt.config import Mode, SafeCodeConfig, SamplingParams, StageName
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy.base import Verdict
from safecode_trt.policy.modes import make_policy

__all__ = ["SettingsRead", "settings_read"]

DRAWING = ("top_k", "top_p", "min_p", "seed")
"""Sampling parameters that count only where a token is drawn, above temperature 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsRead:
    """Dotted names of the settings and of the bundle's defaults that were read, and sampling parameters that were not.

    Every other setting could have any value without a change in a reply.
    """

    settings: frozenset[str]
    defaults: frozenset[str]
    idle_sampling: frozenset[str]


def settings_read(
    mode: Mode,
    defaults: SafeCodeDefaults,
    *,
    settings: SafeCodeConfig,
    stages: Sequence[StageName] | None = None,
    sampling: SamplingParams,
) -> SettingsRead:
    """What the policy of these arguments reads; they are those of `make_policy`.

    Raises:
        ConfigError: as `make_policy`.
    """
    read: set[str] = set()
    read_defaults: set[str] = set()
    policy = make_policy(
        mode,
        cast(SafeCodeDefaults, _Watched(defaults, read_defaults)),
        settings=cast(SafeCodeConfig, _Watched(settings, read)),
        stages=stages,
    )
    ids = (*defaults.refusal_token_ids, *(token for ids in defaults.refusal_tokens for token in ids))
    vocabulary = max((0, *ids)) + 1
    chosen: list[SamplingParams] = []
    for p_unsafe in (0.0, 1.0):
        verdict = Verdict(p_unsafe=p_unsafe, threshold=0.5, source="dry run")
        informed = policy.informed(verdict)
        names = [context.name for context in informed.plan.contexts]
        steering = informed.begin({name: np.zeros(vocabulary, np.float32) for name in names})
        steering.combine(0, np.zeros((len(names), vocabulary), np.float32))
        chosen += [steering.sampling(sampling, steered=steered) for steered in (True, False)]
    drawn = [one for one in chosen if one.temperature > 0]
    idle = {name for name in DRAWING if not any(_kept(name, sampling, one) for one in drawn)}
    if policy.plan.noise is not None:
        idle.discard("seed")
    if not any(_kept("temperature", sampling, one) for one in chosen):
        idle.add("temperature")
    return SettingsRead(
        settings=frozenset(read), defaults=frozenset(read_defaults), idle_sampling=frozenset(idle)
    )


def _kept(name: str, asked: SamplingParams, chosen: SamplingParams) -> bool:
    return bool(getattr(asked, name) == getattr(chosen, name))


class _Watched:
    """Stands in for a record and writes down which of its fields are read."""

    def __init__(self, record: Any, read: set[str], path: str = "") -> None:
        self._record, self._read, self._path = record, read, path

    def __getattr__(self, name: str) -> Any:
        value, path = getattr(self._record, name), f"{self._path}{name}"
        self._read.add(path)
        return _Watched(value, self._read, f"{path}.") if dataclasses.is_dataclass(value) else value
