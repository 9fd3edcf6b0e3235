"""The memory of the fake GPU: the host's, with a fence around every piece that was given out.

It is full of NaN when it is given out. What was freed is remembered, and nobody else gets its address; with `reuses`,
what is as large does, as on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Memory", "Piece"]

GUARD = 512
ALIGNMENT = 256
Bytes = NDArray[np.uint8]
Kind = Literal["device", "host"]


@dataclass
class Piece:
    """Memory that was given out; `data` has guards of `GUARD` bytes on both sides, which nobody may change."""

    kind: Kind
    data: Bytes
    freed: bool = False

    @property
    def begin(self) -> int:
        return self.data.ctypes.data + GUARD

    @property
    def end(self) -> int:
        return self.begin + len(self.data) - 2 * GUARD

    @property
    def inside(self) -> Bytes:
        return self.data[GUARD:-GUARD]

    def sound(self) -> bool:
        return bool((self.data[:GUARD] == 0xAB).all() and (self.data[-GUARD:] == 0xAB).all())


@dataclass
class Memory:
    """All pieces, of the device and of locked memory of the host."""

    pieces: list[Piece] = field(default_factory=list)
    reuses: bool = False

    def allocate(self, kind: Kind, size: int) -> int:
        assert size > 0
        for piece in self.pieces if self.reuses else ():
            if piece.freed and piece.kind == kind and len(piece.inside) == size:
                piece.freed = False
                piece.inside[:] = 0xFF
                return piece.begin
        data = np.full(size + 2 * GUARD + ALIGNMENT, 0xAB, np.uint8)
        offset = -(data.ctypes.data + GUARD) % ALIGNMENT
        piece = Piece(kind, data[offset : offset + size + 2 * GUARD])
        piece.inside[:] = 0xFF  # NaN in every float type
        self.pieces.append(piece)
        return piece.begin

    def free(self, address: int, kind: Kind) -> None:
        (piece,) = [x for x in self.pieces if x.begin == address and not x.freed]
        assert piece.kind == kind
        piece.freed = True

    def view(self, address: int, nbytes: int) -> Bytes:
        """Memory that was given out and is still held."""
        piece = self._piece(address)
        assert address + nbytes <= piece.end, f"{nbytes} bytes at {address:#x} lie outside what was given out"
        assert not piece.freed, f"{piece.kind} memory is used after it was freed"
        start = GUARD + address - piece.begin
        return piece.data[start : start + nbytes]

    def kind(self, address: int) -> Kind:
        return self._piece(address).kind

    def held(self) -> list[Piece]:
        """What has not come back."""
        assert all(piece.sound() for piece in self.pieces), "written beside what was given out"
        return [piece for piece in self.pieces if not piece.freed]

    def bytes_of(self, kind: Kind) -> int:
        """How much of a kind is given out."""
        return sum(len(piece.inside) for piece in self.held() if piece.kind == kind)

    def _piece(self, address: int) -> Piece:
        found = [piece for piece in self.pieces if piece.begin <= address < piece.end]
        assert found, f"{address:#x} lies outside what was given out"
        return found[-1]
