"""Tensors in the memory of a GPU that have twins in locked memory of the host: one copy moves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from numpy.typing import NDArray

from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.stored_floats import StoredFloats

__all__ = ["ALIGNMENT", "Layout", "StagingBuffer"]

ALIGNMENT = 256
"""What the addresses of TensorRT's tensors must be multiples of."""

Array = NDArray[Any]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Element type, in the manifest's words, and shape of every tensor."""


class StagingBuffer:
    """Both memories grow when a layout wants more, and `address` is then another.

    `host` is each tensor on the host; bfloat16, which numpy has not, is uint16 there.
    """

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        self._layout: Layout = {}
        self._offsets: dict[str, int] = {}
        self._size = 0
        self.host: dict[str, Array] = {}
        self._reserve(0)

    @property
    def address(self) -> int:
        """Where the device's half begins."""
        return self._device.handle

    def lay(self, layout: Layout) -> None:
        """Makes room for these tensors; what is in it does not matter any more.

        Raises:
            MemoryError: there is not enough.
        """
        self._stream.synchronize()  # of a pass that has failed, copies may still be under way
        if layout == self._layout:
            return
        self._layout, offset = {}, 0
        for name, (dtype, shape) in layout.items():
            self._offsets[name] = offset
            size = prod(shape) * StoredFloats.of(dtype).storage.itemsize
            offset += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT  # an empty tensor has an address too
        if offset > self._device.nbytes:
            self._reserve(offset)
        self.host = {name: self._view(name, *what) for name, what in layout.items()}
        self._layout, self._size = dict(layout), offset

    def addresses(self) -> dict[str, int]:
        """Where every tensor is on the device."""
        return {name: self.address + self._offsets[name] for name in self._layout}

    def fill(self, name: str, value: Array) -> None:
        """Writes a tensor on the host in its element type."""
        StoredFloats.of(self._layout[name][0]).fill(self.host[name], value)

    def upload(self) -> None:
        """Sends all tensors to the device, after what is on the stream."""
        self._stream.copy(self.address, self._locked.handle, self._size)

    def download(self) -> None:
        """Sends them to the host; they are there after the stream has been waited for."""
        self._stream.copy(self._locked.handle, self.address, self._size)

    def _reserve(self, nbytes: int) -> None:
        # Both or none: there may be room for one only.
        device, locked = self._stream.allocate(nbytes), self._stream.allocate_host(nbytes)
        self._device, self._locked = device, locked

    def _view(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        kind = StoredFloats.of(dtype).storage
        offset, size = self._offsets[name], prod(shape) * kind.itemsize
        return self._locked.array[offset : offset + size].view(kind).reshape(shape)
