"""Turns token ids and cache positions into the decoder's inputs. Knows nothing of text or policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import MASKED
from safecode_trt.models import TextConfig
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rotary import RotaryEmbedding
from safecode_trt.runtime.rows import RowPrompt, Tail
from safecode_trt.runtime.session import DecoderFeeds
from safecode_trt.tensors import MappedTensor

__all__ = ["FeedBuilder"]

TEXT_TAIL = Tail()


class FeedBuilder:
    """Holds the memory-mapped embedding table (V, E) and the rotary tables of one bundle."""

    def __init__(self, text: TextConfig, embed_tokens: MappedTensor, context_length: int) -> None:
        self._table = embed_tokens
        self._rope = RotaryEmbedding(text, context_length)

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n,) token ids to (n, E) embeddings; only these rows are read."""
        return self._table.rows(token_ids)

    def text_row(self, token_ids: NDArray[np.int64]) -> RowPrompt:
        """A row of (n,) token ids without pictures."""
        positions = np.arange(len(token_ids) + 1, dtype=np.int64)[None]
        return RowPrompt(keys=token_ids, embeds=self.embed(token_ids), positions=positions)

    def feeds(
        self,
        rows: Sequence[RowPrompt],
        counts: NDArray[np.int64],
        cache: KVCache,
        *,
        first_row: int = 0,
        logit_positions: NDArray[np.int64] | None = None,
    ) -> DecoderFeeds:
        """One pass that writes the next `counts[c]` tokens of each prompt after what row first_row + c holds.

        The cache must have the room; see `KVCache.require`.

        Rows shorter than the longest are padded; padding is written after the row, where no query of the
        row looks before it is overwritten. `logit_positions` (C, Q) are among the new tokens, by
        default the last real one of each row.
        """
        new = max(int(counts.max()), 1)
        starts = cache.lengths[first_row : first_row + len(rows)].copy()
        spans = [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]

        def padded(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
            """(C, T, ...) of the rows' parts, each (its count, ...)."""
            given = list(parts)
            block = np.zeros((len(given), new, *given[0].shape[1:]), given[0].dtype)
            for target, part in zip(block, given, strict=True):
                target[: len(part)] = part
            return block

        pairs = list(zip(rows, spans, strict=True))
        axes = [
            padded(row.positions[axis, span] for row, span in pairs) for axis in range(len(rows[0].positions))
        ]
        return self._assemble(
            padded(row.embeds[span] for row, span in pairs),
            np.stack(axes) if len(axes) > 1 else axes[0],
            starts,
            np.maximum(counts - 1, 0)[:, None] if logit_positions is None else logit_positions,
            cache.memory.capacity,
            {
                name: padded(row.token_inputs[name][span] for row, span in pairs)
                for name in rows[0].token_inputs
            },
            {name: np.stack([row.row_inputs[name] for row in rows]) for name in rows[0].row_inputs},
        )

    def step(self, token_id: int, cache: KVCache, tail: Tail = TEXT_TAIL) -> DecoderFeeds:
        """One pass that writes the same token after every carried row."""
        rows = cache.rows
        starts = cache.lengths[:rows].copy()
        return self._assemble(
            np.repeat(self.embed(np.array([token_id]))[None], rows, axis=0),
            (starts + tail.offsets[:rows])[:, None],
            starts,
            np.zeros((rows, 1), np.int64),
            cache.memory.capacity,
            {name: x[:rows] for name, x in tail.token_inputs.items()},
            {name: x[:rows] for name, x in tail.row_inputs.items()},
        )

    def _assemble(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        starts: NDArray[np.int64],
        logit_positions: NDArray[np.int64],
        capacity: int,
        token_inputs: Mapping[str, NDArray[Any]],
        row_inputs: Mapping[str, NDArray[Any]],
    ) -> DecoderFeeds:
        queries = starts[:, None] + np.arange(embeds.shape[1])  # (C, T)
        bias = np.full((*queries.shape, capacity), MASKED, np.float32)
        for query, position in zip(bias.reshape(-1, capacity), queries.flat, strict=True):
            query[: position + 1] = 0
        cos, sin = self._rope(positions)
        return DecoderFeeds(
            inputs_embeds=embeds,
            rope_cos=cos,
            rope_sin=sin,
            write_indices=starts,
            attention_bias=bias[:, None],
            logit_positions=logit_positions,
            token_inputs=token_inputs,
            row_inputs=row_inputs,
        )
