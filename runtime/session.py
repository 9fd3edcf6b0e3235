"""The one interface between the decode loop and whatever executes the graphs.

A session runs two graphs and owns memory for keys and values; it knows nothing of tokens, prompts or policies.
Shapes follow `contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from safecode_trt.runtime.choose import Chooser, HostChooser

__all__ = ["CacheMemory", "DecoderFeeds", "DecoderOutputs", "Prefix", "Session"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFeeds:
    """The inputs of one decoder pass apart from the cache, in float32; the session casts if its graph wants."""

    inputs_embeds: NDArray[np.float32]  # (C, T, E)
    rope_cos: NDArray[np.float32]  # (C, T, D/2)
    rope_sin: NDArray[np.float32]  # (C, T, D/2)
    write_indices: NDArray[np.int64]  # (C,)
    attention_bias: NDArray[np.float32]  # (C, 1, T, CAP)
    logit_positions: NDArray[np.int64]  # (C, Q)
    # Each (C, T, ...): the family's own, and what is added at taps; a tap that is not named gets zeros.
    token_inputs: Mapping[str, Array] = field(default_factory=dict)
    row_inputs: Mapping[str, Array] = field(
        default_factory=dict
    )  # the same for all passes of a row, (C, ...)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOutputs:
    """The logits (C, Q, V) of a pass and, by name, those of its other outputs that were wanted: each (C, T, ...).

    They are valid until the session's next call.
    """

    logits: NDArray[np.float32]
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of the first `length` positions of one row, copied out of a cache."""

    length: int
    data: Any


class CacheMemory(Protocol):
    """The key/value memory of one reply: `rows` rows, with room for `capacity` positions in every layer now.

    It grows up to `limit`, the bundle's context length; `reserve` before a pass, whose mask is as wide as
    `capacity` is then.
    """

    @property
    def rows(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def limit(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def reserve(self, positions: int, *, rows: int | None = None) -> None:
        """Makes room for at least so many positions, keeping what the first `rows` rows hold, by default all."""

    def clear(self) -> None:
        """Forgets what all rows hold, so that the next `reserve` may choose less room than there was."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` to row `target`."""

    def save_prefix(self, row: int, length: int) -> Prefix:
        """Copies the first `length` positions of a row out."""

    def load_prefix(self, row: int, prefix: Prefix) -> None:
        """Copies saved positions into a row."""


class Session(Protocol):
    """Executes the vision encoder and the decoder of one bundle on one backend."""

    @property
    def name(self) -> str: ...

    def encode(self, inputs: Mapping[str, Array]) -> Mapping[str, NDArray[np.float32]]:
        """The vision encoder's outputs for its inputs, all by name; never called for a text-only bundle."""

    def allocate(self, rows: int) -> CacheMemory:
        """Memory for `rows` rows with the least capacity, holding nothing; what it holds by chance is finite."""

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        """One pass over C rows of `memory` from `first_row` on, updated in place.

        The other rows of the memory are neither read nor written. `wanted` names other
        outputs than the logits: `hidden`, or the reads of taps, where the bundle has them.
        """

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> Any:
        """`decode` for all rows that are carried and one position of each: logits (C, V) for the session's choosers.

        On the host they are an array; elsewhere they need not leave the device. Valid until the next call.
        """

    def chooser(self, host: HostChooser) -> Chooser:
        """What chooses the tokens of one reply from `step`'s logits; `host` itself where they are on the host."""

    def close(self) -> None:
        """Releases what the session holds."""
