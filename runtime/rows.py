"""One row of a batch as numbers: what its prompt is made of, and what goes on after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowPrompt", "Tail", "tail_of"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPrompt:
    """One row's prompt: `keys` (n,) are equal where two rows see the same token or image feature.

    `embeds` is (n, E). `positions` (axes, n + 1) are rotary, and `token_inputs` (n + 1, ...) the family's own:
    the last of each belongs to the first token after the prompt. `row_inputs` hold for the whole row.
    """

    keys: NDArray[np.int64]
    embeds: NDArray[np.float32]
    positions: NDArray[np.int64]
    token_inputs: Mapping[str, Array] = field(default_factory=dict)
    row_inputs: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What the tokens after the prompts have in common, per row.

    `offsets` (C,) is the rotary position minus the position in the cache; the inputs are as in `DecoderFeeds`.
    """

    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    token_inputs: Mapping[str, Array] = field(default_factory=dict)
    row_inputs: Mapping[str, Array] = field(default_factory=dict)


def tail_of(rows: Sequence[RowPrompt]) -> Tail:
    """The tail of rows whose prompts have all been prefilled."""
    first = rows[0]
    return Tail(
        # Behind a prompt all axes count on together.
        offsets=np.array([row.positions[0, -1] - len(row) for row in rows], np.int64),
        token_inputs={
            name: np.stack([row.token_inputs[name][-1:] for row in rows]) for name in first.token_inputs
        },
        row_inputs={name: np.stack([row.row_inputs[name] for row in rows]) for name in first.row_inputs},
    )
