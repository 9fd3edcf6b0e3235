"""A GPU for tests of the ONNX Runtime backends: a driver whose memory is the host's, and providers that are the CPU's.

Device addresses are the host's with a bit set, so that a place on the device that is taken for one on the host, or the
other way round, is found out. Everything that the backends use of libcuda and onnxruntime is here or is the real one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as real

__all__ = ["FakeDriver", "FakeOrt"]

ON_DEVICE = 1 << 60
CPU = "CPUExecutionProvider"
OUT_OF_MEMORY, INVALID = 2, 1


class FakeDriver:
    """libcuda, as far as `cuda_memory.py` calls it. `copies` counts; `room` is how many bytes there are."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room, self.copies = room, 0
        self.buffers: dict[int, Any] = {}
        self.current = 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.current += context.value
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.current -= 1
        return 0

    def cuCtxSynchronize(self) -> int:
        return 0 if self.current else INVALID

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if not self.current or not size.value:
            return INVALID
        if sum(map(len, self.buffers.values())) + size.value > self.room:
            return OUT_OF_MEMORY
        buffer = (ctypes.c_char * size.value)()
        ctypes.memset(
            buffer, 0xFF, size.value
        )  # NaN in every type, as memory may have it that nobody has written
        address._obj.value = ctypes.addressof(buffer) | ON_DEVICE
        self.buffers[address._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        return 0 if self.buffers.pop(address.value, None) is not None else INVALID

    def cuMemsetD8_v2(self, address: Any, value: Any, size: Any) -> int:
        ctypes.memset(self.host(address.value, size.value), value.value, size.value)
        return 0

    def cuMemcpyHtoD_v2(self, target: Any, source: Any, size: Any) -> int:
        ctypes.memmove(self.host(target.value, size.value), source.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, target: Any, source: Any, size: Any) -> int:
        ctypes.memmove(target.value, self.host(source.value, size.value), size.value)
        return 0

    def cuMemcpy3D_v2(self, order: Any) -> int:
        o = order._obj
        if (o.src_type, o.dst_type) != (2, 2) or max(o.width - o.src_pitch, o.width - o.dst_pitch) > 0:
            return INVALID
        if o.height > min(o.src_height, o.dst_height):
            return INVALID
        self.copies += 1
        for plane in range(o.depth):
            for line in range(o.height):
                source = o.src_device + (plane * o.src_height + line) * o.src_pitch
                target = o.dst_device + (plane * o.dst_height + line) * o.dst_pitch
                ctypes.memmove(self.host(target, o.width), self.host(source, o.width), o.width)
        return 0

    def host(self, address: int, size: int) -> int:
        """Where a piece of device memory is in truth; it must be inside of what was allocated."""
        inside = [a for a, b in self.buffers.items() if a <= address and address + size <= a + len(b)]
        if not inside:
            raise AssertionError(f"{size} bytes at {address:#x} are not on the device")
        return address & ~ON_DEVICE


@dataclass
class Part:
    """A subgraph of the assignment, as onnxruntime tells of it."""

    ep_name: str
    nodes: list[Any]

    def get_nodes(self) -> list[Any]:
        return self.nodes


class FakeOrt:
    """The module onnxruntime with more providers. They leave the operators of `on_cpu` to the CPU; those of `broken`
    are listed and do not load. An `old` one cannot say where nodes are."""

    __version__ = real.__version__
    SessionOptions = real.SessionOptions

    def __init__(
        self, driver: FakeDriver, *, on_cpu: Sequence[str] = (), broken: Sequence[str] = (), old: bool = False
    ) -> None:
        self.driver, self.on_cpu, self.broken = driver, on_cpu, broken
        self.InferenceSession = type(
            "InferenceSession", (FakeSession if old else PlacedSession,), {"module": self}
        )

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]


class FakeSession:
    """A session on the CPU that says it is on the providers asked for."""

    module: FakeOrt

    def __init__(
        self, path: str, options: Any, *, providers: Sequence[tuple[str, Any]], enable_fallback: int
    ) -> None:
        assert enable_fallback == 0
        self._asked = [name for name, _ in providers]
        self._real = real.InferenceSession(path, options, providers=[CPU])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        loaded = [name for name in self._asked if name not in self.module.broken]
        return [*dict.fromkeys([*loaded, CPU])]

    def io_binding(self) -> Any:
        binding = self._real.io_binding()
        return binding if self._asked == [CPU] else FakeBinding(binding, self.module.driver)

    def run_with_iobinding(self, binding: Any) -> None:
        if isinstance(binding, FakeBinding):
            assert binding.inputs_are_there, "the copies to the device may still be on their way"
            binding.inputs_are_there = False
            binding = binding.io
        self._real.run_with_iobinding(binding)


class PlacedSession(FakeSession):
    """A session that tells which provider has which node."""

    def get_provider_graph_assignment_info(self) -> list[Part]:
        parts = self._real.get_provider_graph_assignment_info()
        nodes = [node for part in parts for node in part.get_nodes()]
        left = [node for node in nodes if node.op_type in self.module.on_cpu]
        taken = [node for node in nodes if node.op_type not in self.module.on_cpu]
        return [Part(self.get_providers()[0], taken), Part(CPU, left)]


class FakeBinding:
    """A binding that copies what is bound from the host, at that moment, as one to a device does."""

    def __init__(self, io: Any, driver: FakeDriver) -> None:
        self.io, self._driver = io, driver
        self._copies: dict[str, Any] = {}
        self.inputs_are_there = False

    def synchronize_inputs(self) -> None:
        self.inputs_are_there = True

    def synchronize_outputs(self) -> None:
        pass

    def bind_input(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        if device == "cuda":
            address = self._host(kind, shape, address)
        else:
            size = int(np.prod(shape)) * _itemsize(kind)
            self._copies[name] = ctypes.create_string_buffer(ctypes.string_at(address, size), size)
            address = ctypes.addressof(self._copies[name])
        self.io.bind_input(name, "cpu", number, kind, shape, address)

    def bind_output(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        if device == "cuda":
            address = self._host(kind, shape, address)
        self.io.bind_output(name, "cpu", number, kind, shape, address)

    def _host(self, kind: Any, shape: Any, address: int) -> int:
        return self._driver.host(address, int(np.prod(shape)) * _itemsize(kind))


def _itemsize(kind: Any) -> int:
    return 2 if kind == 16 else int(np.dtype(kind).itemsize)
