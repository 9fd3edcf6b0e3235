"""Turns token ids and cache positions into the decoder's inputs. Knows nothing of text or policies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import TextConfig
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rope import RotaryEmbedding
from safecode_trt.runtime.session import DecoderFeeds
from safecode_trt.tensors import MappedTensor

__all__ = ["FeedBuilder"]

# Far below any score, and still finite in float16: a softmax weight of exactly 0 without infinities.
MASKED = np.float32(-30000.0)


class FeedBuilder:
    """Holds the memory-mapped embedding table (V, E) and the rotary tables of one bundle."""

    def __init__(self, text: TextConfig, embed_tokens: MappedTensor, capacity: int) -> None:
        self._table = embed_tokens
        self._rope = RotaryEmbedding(text, capacity)
        self._positions = np.arange(capacity, dtype=np.int64)

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n,) token ids to (n, E) embeddings; only these rows are read."""
        return self._table.rows(token_ids)

    def feeds(
        self,
        rows: Sequence[NDArray[np.float32]],
        counts: NDArray[np.int64],
        cache: KVCache,
        *,
        first_row: int = 0,
    ) -> DecoderFeeds:
        """One pass that writes `rows[c]` (counts[c], E) behind what row first_row + c holds.

        Rows shorter than the longest are padded; padding is written behind the row, where no query of the
        row looks before it is overwritten. Each row's logits are those of its last real position.
        """
        new = max(int(counts.max()), 1)
        starts = cache.lengths[first_row : first_row + len(rows)].copy()
        embeds = np.zeros((len(rows), new, self._table.shape[1]), np.float32)
        for target, row in zip(embeds, rows, strict=True):
            target[: len(row)] = row
        return self._assemble(embeds, starts, np.maximum(counts - 1, 0)[:, None])

    def step(self, token_id: int, cache: KVCache) -> DecoderFeeds:
        """One pass that writes the same token behind every carried row."""
        rows = cache.rows
        embeds = np.repeat(self.embed(np.array([token_id]))[None], rows, axis=0)
        return self._assemble(embeds, cache.lengths[:rows].copy(), np.zeros((rows, 1), np.int64))

    def _assemble(
        self, embeds: NDArray[np.float32], starts: NDArray[np.int64], logit_positions: NDArray[np.int64]
    ) -> DecoderFeeds:
        new = embeds.shape[1]
        positions = starts[:, None] + self._positions[:new]  # (C, T)
        visible = self._positions[: int(starts.max()) + new] <= positions[..., None]  # (C, T, K)
        cos, sin = self._rope(positions)
        return DecoderFeeds(
            inputs_embeds=embeds,
            rope_cos=cos,
            rope_sin=sin,
            write_indices=starts,
            attention_bias=np.where(visible, np.float32(0), MASKED)[:, None],
            logit_positions=logit_positions,
        )
