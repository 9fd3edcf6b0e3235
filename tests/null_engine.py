"""Requests to an engine on the null backend, and null sessions that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from safecode_trt.config import SafeCodeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.policy import make_policy
from safecode_trt.runtime import Reply
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.null import NullSession
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, DecoderOutputs

__all__ = ["PICTURE", "REQUEST", "SHORT", "Broken", "Spoiling", "ask", "not_finite", "null"]

PICTURE = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8))
SHORT = SamplingParams(max_new_tokens=12)
REQUEST = "can i pour water on it?"


def null(engine: Engine) -> NullSession:
    assert isinstance(engine.model.session, NullSession)
    return engine.model.session


def ask(engine: Engine, settings: SafeCodeConfig | None = None, sampling: SamplingParams = SHORT) -> Reply:
    defaults = engine.bundle.manifest.safecode
    policy = make_policy("plain" if settings is None else "safecode", defaults, settings=settings)
    return engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=sampling)


def not_finite(outputs: DecoderOutputs) -> DecoderOutputs:
    """The outputs with NaN in the place of every logit."""
    return replace(outputs, logits=np.full_like(outputs.logits, np.nan))


class Broken(NullSession):
    """A null session whose decoder misbehaves in one pass, or with None in all."""

    def __init__(self, inner: NullSession, fault: Exception | float, at: int | None) -> None:
        super().__init__(inner.geometry)
        self.fault, self.at = fault, at

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        outputs = super().decode(feeds, memory, first_row=first_row, wanted=wanted)
        if self.at in (None, len(self.calls)):
            if isinstance(self.fault, Exception):
                raise self.fault
            outputs.logits[:] = self.fault
        return outputs


class Spoiling(NullSession):
    """A null session whose passes leave NaN in the cache, until it is sound, or behind so many."""

    sound = False
    spoils_after: int | None = None

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        outputs = super().decode(feeds, memory, first_row=first_row, wanted=wanted)
        late = self.spoils_after is not None and len(self.calls) > self.spoils_after
        if late or not self.sound:
            assert isinstance(memory, HostCache)
            memory.data[:] = np.nan
        return outputs
