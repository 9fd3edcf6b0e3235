"""Token ids to text as they come: no character is split, and a stop string is never shown."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

__all__ = ["TextStream"]


class TextStream:
    """Feeds on token ids one by one and gives out the text that is certain."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []
        self._decoded = ""
        self._shown = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """What has been given out so far."""
        return self._decoded[: self._shown]

    @property
    def whole(self) -> str:
        """All text so far, with what may still be held back."""
        return self._decoded

    def push(self, token_id: int) -> str:
        """The new text after one more token; `stopped` says that a stop string has been met."""
        self._append(self._step(token_id))
        return self._show(self._held_back())

    def finish(self) -> str:
        """The rest: what was held back for a stop string or an unfinished character."""
        if not self.stopped:
            self._append(self._tokenizer.decode(self._pending, skip_special_tokens=True))
        return self._show(0)

    def _step(self, token_id: int) -> str:
        """The text that is certain since the last that was; until then tokens are pending."""
        self._pending.append(token_id)
        try:
            piece = self._decoder.step(self._tokenizer, token_id) or ""
        except Exception:  # tokenizers has no class of its own for it
            # A byte that begins no character also undoes the bytes before it, which were given out: begin after them.
            self._decoder = DecodeStream(skip_special_tokens=True)
            piece = "".join(self._decoder.step(self._tokenizer, each) or "" for each in self._pending)
        if piece:
            self._pending.clear()
        return piece

    def _append(self, piece: str) -> None:
        self._decoded = (self._decoded + piece) if self._decoded else piece.lstrip()
        found = [at for stop in self._stop if (at := self._decoded.find(stop)) >= 0]
        if found:
            self._decoded = self._decoded[: min(found)]
            self.stopped = True

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        if self.stopped:
            return 0
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        lengths = range(min(longest, len(self._decoded)), 0, -1)
        return next(
            (n for n in lengths if any(stop.startswith(self._decoded[-n:]) for stop in self._stop)), 0
        )

    def _show(self, held_back: int) -> str:
        end = max(len(self._decoded) - held_back, self._shown)
        piece, self._shown = self._decoded[self._shown : end], end
        return piece
