"""Runs a decoder graph alone, with plain ONNX Runtime calls and no IO binding: the simplest possible session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import Activations, Geometry, Precision, activation_dtype
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.ort import open_graph
from safecode_trt.runtime.backends.ort_binding import FEEDS
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds

Array = NDArray[Any]
FLOATS = ("inputs_embeds", "rope_cos", "rope_sin", "attention_bias")


class DecoderRunner:
    """A session for one decoder; `features` are what its vision encoder would return."""

    name = "decoder-runner"

    def __init__(
        self,
        path: Path,
        geometry: Geometry,
        precision: Precision,
        features: Array | None = None,
        *,
        activations: Activations = "fp32",
    ) -> None:
        self._graph = open_graph(path, threads=1)
        self._geometry, self._dtype = geometry, np.dtype(activation_dtype(precision, activations))
        self._features = features

    def encode(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        assert self._features is not None
        return {"image_features": self._features}

    def allocate(self, rows: int) -> CacheMemory:
        return HostCache.for_decoder(self._geometry, rows, self._dtype)

    def decode(self, feeds: DecoderFeeds, memory: CacheMemory) -> Array:
        assert isinstance(memory, HostCache)
        rows = len(feeds.inputs_embeds)
        inputs = {name: getattr(feeds, name) for name in FEEDS}
        inputs |= {name: inputs[name].astype(self._dtype) for name in FLOATS}
        for slab in range(len(memory.data)):
            inputs[_name("past_key_values", slab)] = memory.data[slab, :rows]
        names = [_name("present", slab) for slab in range(len(memory.data))]
        logits, *present = self._graph.run(["logits", *names], inputs)
        for slab, data in enumerate(present):
            memory.data[slab, :rows] = data
        return np.asarray(logits)[:, 0]  # one position of each row

    def close(self) -> None:
        """Nothing is held."""


def _name(prefix: str, slab: int) -> str:
    layer, part = divmod(slab, 2)
    return f"{prefix}.{layer}.{('key', 'value')[part]}"


def greedy(session: DecoderRunner, builder: FeedBuilder, prompt: Array, count: int) -> list[int]:
    """The greedy reply to a prompt of token ids, one token per pass after the prefill."""
    cache = KVCache(session.allocate(1), rows=1)
    logits = prefill(session, builder, cache, [prompt])
    reply = [int(logits[0].argmax())]
    while len(reply) < count:
        cache.require(1)
        logits = session.decode(builder.step(reply[-1], cache), cache.memory)
        cache.advance(np.ones(1, np.int64))
        reply.append(int(logits[0].argmax()))
    return reply


def prefill(session: DecoderRunner, builder: FeedBuilder, cache: KVCache, prompts: list[Array]) -> Array:
    """Writes prompts of any lengths as rows of one pass; logits (C, V) at the end of each."""
    counts = np.array([len(prompt) for prompt in prompts], np.int64)
    cache.require(int(counts.max()))
    feeds = builder.feeds([builder.text_row(prompt) for prompt in prompts], counts, cache)
    logits = session.decode(feeds, cache.memory)
    cache.advance(counts)
    return logits
