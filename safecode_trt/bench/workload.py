"""What the benchmark runs on an opened engine: steps, prefills, pictures, whole replies, each as a case to time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from safecode_trt.bench.meter import MeteredSession, reply_parts
from safecode_trt.bench.timing import Case, lasting
from safecode_trt.config import SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Policy
from safecode_trt.runtime.image import normalise, picture_views
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.request import Request, as_messages, prepare

__all__ = ["MAX_ROWS", "VISIBLE_KEYS", "Variant", "Workload"]

Variant = Literal["plain", "cached", "noised", "verdict"]
SEEN: tuple[Variant, ...] = ("plain", "cached", "noised")
READ: tuple[Variant, ...] = ("plain", "verdict")
MAX_ROWS = 3
# The middle of a size of the cache: a step reads all of it, and that is how much is filled on average.
VISIBLE_KEYS = 224


class Workload:
    """One request about one picture, or about none on a text-only bundle, on an engine whose session it meters.

    `variants` are the kinds of decoding: plain, and the mode of the bundle with each reference; without a picture
    the verdict alone.
    """

    def __init__(self, engine: Engine, request: str) -> None:
        self.engine, self.text = engine, request
        self.meter = MeteredSession(engine.model.session)
        engine.model.session = self.meter
        self.variants = READ if engine.model.spec.text_only else SEEN
        self.policies: dict[Variant, Policy] = {name: _policy(engine, name) for name in self.variants}
        self.pictures = [_drawn(*view.size) for view in engine.model.spec.reference_layout.views[:1]]
        self.prompts = {name: self._prepared(name) for name in self.variants}
        self.visible_keys = min(VISIBLE_KEYS, engine.model.capacity // 2)
        self.capacity = self._cache(1, self.visible_keys).memory.capacity

    def longest_prompt(self) -> int:
        """Positions that the prompts take in the cache, whatever the variant."""
        return max(prepared.prefill.capacity for prepared in self.prompts.values())

    def steps(self, rows: int) -> Case:
        """Decode steps in which every row sees `visible_keys` of `capacity` positions, the new one included."""
        cache = self._filled(rows)
        engine = self.engine

        def run() -> None:
            engine.model.session.decode(engine.model.builder.step(self._token(), cache), cache.memory)

        return lasting(run)

    def prefill(self, rows: int) -> Case:
        """One pass over the request's prompt in every row."""
        tokens = self.prompts["plain"].tokens["request"]
        prompt = self.engine.model.builder.text_row(tokens)
        counts = np.full(rows, len(tokens), np.int64)
        cache = self._cache(rows, len(tokens))

        def run() -> None:
            self.engine.model.session.decode(
                self.engine.model.builder.feeds([prompt] * rows, counts, cache), cache.memory
            )

        return lasting(run)

    def vision(self, pictures: int) -> Case:
        """The vision encoder on so many pictures in one call, tiles included."""
        spec, layout = self.engine.model.spec, self.prompts["plain"].layouts[0]
        views = normalise(picture_views(self.pictures[0], layout, spec.resample), spec)
        words = self.prompts["plain"].words.get("request")
        inputs = spec.vision_inputs(views, layout, words)
        batch = {name: np.concatenate([x] * pictures) for name, x in inputs.items()}

        def run() -> None:
            self.engine.model.session.encode(batch)

        return lasting(run)

    def reply(self, variant: Variant, tokens: int) -> Case:
        """A whole reply of so many tokens, from the words and the picture to the text."""
        return Case(partial(self._answer, variant, tokens))

    def _answer(self, variant: Variant, tokens: int) -> dict[str, float]:
        self.meter.calls.clear()
        reply = self.engine.generate(
            self.text,
            image=self.pictures,
            policy=self.policies[variant],
            sampling=SamplingParams(max_new_tokens=tokens, ignore_eos=True),
        )
        if len(reply.token_ids) != tokens:
            raise BackendError(
                f"a reply of {tokens} tokens ended by {reply.finish_reason} after {len(reply.token_ids)}"
                + (f": {reply.fallback_reason}" if reply.fallback_reason else "")
            )
        return reply_parts(reply, self.meter.calls)

    def _prepared(self, variant: Variant) -> Request:
        return prepare(
            as_messages(self.text, len(self.pictures)),
            self.pictures,
            plan=self.policies[variant].plan,
            prompts=self.engine.model.prompts,
            spec=self.engine.model.spec,
            capacity=self.engine.model.capacity,
            kept=lambda key: None,
        )

    def _cache(self, rows: int, positions: int) -> KVCache:
        """An empty cache with room for so many positions in every row, as the runtime makes it."""
        cache = KVCache(self.engine.model.session.allocate(rows), rows=rows)
        cache.require(positions)
        return cache

    def _filled(self, rows: int) -> KVCache:
        """A cache of so many rows before its last visible position."""
        past = self.visible_keys - 1
        builder = self.engine.model.builder
        cache = self._cache(rows, self.visible_keys)
        prompt = builder.text_row(np.full(past, self._token()))
        counts = np.full(rows, past, np.int64)
        self.engine.model.session.decode(builder.feeds([prompt] * rows, counts, cache), cache.memory)
        cache.advance(counts)
        return cache

    def _token(self) -> int:
        return int(self.prompts["plain"].tokens["request"][0])


def _policy(engine: Engine, variant: Variant) -> Policy:
    """The bundle's own settings, with the reference replaced."""
    defaults = engine.bundle.manifest.safecode
    if variant == "plain":
        return make_policy("plain", defaults)
    if variant == "verdict":
        return make_policy("safecode", defaults).without_pictures()
    return make_policy("safecode", defaults, settings=replace(defaults.settings, reference=variant))


def _drawn(width: int, height: int) -> Image.Image:
    ramp = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3)
    return Image.fromarray((ramp % 251).astype(np.uint8))
