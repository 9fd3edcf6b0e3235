"""An ONNX Runtime for tests of its GPU backends: providers that are the CPU's, over the memory of a fake CUDA.

A place on the device that is taken for one on the host, or the other way round, is found out, and so is work that a
pass does not wait for. Everything that the backends use of onnxruntime is here or is the real one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as real

from tests.fake_cudart import FakeCuda

__all__ = ["FakeOrt"]

CPU = "CPUExecutionProvider"


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
    GraphOptimizationLevel = real.GraphOptimizationLevel

    def __init__(
        self, cuda: FakeCuda, *, on_cpu: Sequence[str] = (), broken: Sequence[str] = (), old: bool = False
    ) -> None:
        self.cuda, self.on_cpu, self.broken = cuda, on_cpu, broken
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
        return binding if self._asked == [CPU] else FakeBinding(binding, self.module.cuda)

    def run_with_iobinding(self, binding: Any) -> None:
        if isinstance(binding, FakeBinding):
            assert binding.inputs_are_there, "the copies to the device may still be on their way"
            assert not self.module.cuda.pending(), "work on a stream may still be under way"
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

    def __init__(self, io: Any, cuda: FakeCuda) -> None:
        self.io, self._cuda = io, cuda
        self._copies: dict[str, Any] = {}
        self.inputs_are_there = False

    def synchronize_inputs(self) -> None:
        self.inputs_are_there = True

    def synchronize_outputs(self) -> None:
        pass

    def bind_input(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        if device == "cuda":
            self._require_device(kind, shape, address)
        else:
            size = int(np.prod(shape)) * _itemsize(kind)
            self._copies[name] = ctypes.create_string_buffer(ctypes.string_at(address, size), size)
            address = ctypes.addressof(self._copies[name])
        self.io.bind_input(name, "cpu", number, kind, shape, address)

    def bind_output(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        if device == "cuda":
            self._require_device(kind, shape, address)
        self.io.bind_output(name, "cpu", number, kind, shape, address)

    def _require_device(self, kind: Any, shape: Any, address: int) -> None:
        assert self._cuda.memory.kind(address) == "device"
        self._cuda.memory.view(address, int(np.prod(shape)) * _itemsize(kind))


def _itemsize(kind: Any) -> int:
    return 2 if kind == 16 else int(np.dtype(kind).itemsize)
