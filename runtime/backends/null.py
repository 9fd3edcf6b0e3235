"""A backend without a model: deterministic logits from numpy alone, for tests and dry runs.

Its "attention" is the mean of the visible embeddings, kept in a real cache, so that rows, forks, masks and write
positions matter here exactly as they do in a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import Geometry
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.choose import Chooser, HostChooser
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, DecoderOutputs

__all__ = ["NullSession"]


class NullSession:
    """Implements `Session` for a geometry; `calls` counts the decoder passes by (C, T)."""

    name = "null"

    def __init__(self, geometry: Geometry, *, seed: int = 0) -> None:
        self.geometry = geometry
        draw = np.random.Generator(np.random.PCG64(seed))
        self._head = draw.standard_normal((geometry.hidden_size, geometry.vocab_size), dtype=np.float32)
        self.calls: list[tuple[int, int]] = []

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
        """Features (P, N, E) that differ with each picture's mean."""
        g, pixels = self.geometry, inputs["pixel_values"]
        ramp = np.linspace(0.5, 1.5, g.image_seq_len * g.hidden_size, dtype=np.float32)
        means = pixels.mean(axis=tuple(range(1, pixels.ndim)), dtype=np.float32)
        return {"image_features": means[:, None, None] * ramp.reshape(1, g.image_seq_len, g.hidden_size)}

    def allocate(self, rows: int) -> CacheMemory:
        g = self.geometry
        return HostCache(
            slabs=1, rows=rows, heads=1, limit=g.context_length, dim=g.hidden_size, dtype=np.float32
        )

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        """Logits of the mean of what each of the wanted positions sees; this decoder has no other outputs."""
        if not isinstance(memory, HostCache):
            raise TypeError(f"expected a HostCache, got {type(memory).__name__}")
        if wanted:
            raise BackendError(f"the null backend has no outputs {', '.join(wanted)}")
        rows, new, _ = feeds.inputs_embeds.shape
        self.calls.append((rows, new))
        hidden = np.empty((*feeds.logit_positions.shape, self.geometry.hidden_size), np.float32)
        for row, start in enumerate(feeds.write_indices):
            cache = memory.data[0, first_row + row, 0]
            cache[start : start + new] = feeds.inputs_embeds[row]
            for place, position in enumerate(feeds.logit_positions[row]):
                seen = feeds.attention_bias[row, 0, position] == 0
                hidden[row, place] = seen.astype(np.float32) @ cache / seen.sum()  # a masked key weighs 0
        return DecoderOutputs(logits=hidden @ self._head)

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> NDArray[np.float32]:
        """`decode`: the logits are on the host; see `Session.step`."""
        return self.decode(feeds, memory).logits[:, 0]

    def chooser(self, host: HostChooser) -> Chooser:
        """The host's own; see `Session.chooser`."""
        return host

    def close(self) -> None:
        """Nothing is held."""
