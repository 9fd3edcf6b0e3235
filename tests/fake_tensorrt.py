"""TensorRT and TensorRT-RTX for tests: the part of their Python packages that the runtime uses, and no more.

An engine's file is a small JSON document that names an ONNX graph, which ONNX Runtime executes when the stream of
`FakeCuda` is waited for, on that fake's memory. As in TensorRT, an execution works with what is bound when it is put on
a stream, refuses shapes outside its profile, and writes what is in its working memory to pieces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

from tests.fake_cudart import FakeCuda

__all__ = ["FakeTensorRT", "write_engine"]

ORT_TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
PAST, PRESENT = "past_key_values.", "present."


def write_engine(path: Path, model: Path, profiles: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """An engine's file. `profiles` have the least, usual and largest shape of every input by name."""
    path.write_text(json.dumps({"model": str(model), "profiles": profiles, **settings}))


@cache
def _session(model: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT64 = 8
    BF16 = 7


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        INFO = 3

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class FakeTensorRT:
    """One package. `fails` are methods that fail and what is logged then; `executions` are all that were made."""

    DataType, TensorLocation = DataType, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    ILogger = ILogger

    def __init__(self, cuda: FakeCuda, version: str, *, rtx: bool) -> None:
        self.__version__ = version
        self.__spec__ = ModuleSpec("tensorrt_rtx" if rtx else "tensorrt", None)  # transformers asks for it
        self.cuda, self.rtx = cuda, rtx
        self.fails: dict[str, str] = {}
        self.executions: list[IExecutionContext] = []
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def failed(self, name: str, logger: Any) -> bool:
        """Whether a method is to fail now; it says so in the log."""
        if name not in self.fails:
            return False
        logger.log(ILogger.Severity.INFO, "all is well")
        logger.log(ILogger.Severity.ERROR, self.fails[name])
        return True


class Runtime:
    def __init__(self, package: FakeTensorRT, logger: ILogger) -> None:
        self._package, self._logger = package, logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        if self._package.failed("deserialize_cuda_engine", self._logger):
            return None
        return ICudaEngine(self._package, self._logger, json.loads(bytes(serialized_engine)))


class ICudaEngine:
    def __init__(self, package: FakeTensorRT, logger: ILogger, plan: dict[str, Any]) -> None:
        self._package, self._logger, self._plan = package, logger, plan
        self._session = _session(plan["model"])
        self._tensors = {x.name: x for x in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._outputs = [x.name for x in self._session.get_outputs()]
        self.device_memory_size_v2: int = plan.get("memory", 4096)
        if not plan.get("aliases", True):  # as before 10.15
            self.get_aliased_input_tensor = None  # type: ignore[method-assign, assignment]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[ORT_TYPES[self._tensors[name].type]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == self._plan.get("on_host") else TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        if not name.startswith(PRESENT) or name == self._plan.get("not_aliased"):
            return None
        return PAST + name.removeprefix(PRESENT)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any) -> IExecutionContext | None:
        if self._package.failed("create_execution_context", self._logger):
            return None
        graphs = isinstance(how, IRuntimeConfig) and bool(how.cuda_graph_strategy)
        strategy = how._strategy if isinstance(how, IRuntimeConfig) else how
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        made = IExecutionContext(self, graphs)
        self._package.executions.append(made)
        return made


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class IExecutionContext:
    """`keeps_graphs`: TensorRT-RTX captures. `runs` are the shapes of `inputs_embeds` or of the pictures that ran."""

    def __init__(self, engine: ICudaEngine, keeps_graphs: bool) -> None:
        self.keeps_graphs = keeps_graphs
        self.runs: list[tuple[int, ...]] = []
        self._engine, self._package = engine, engine._package
        self._memory: tuple[int, int] | None = None
        self._profile: dict[str, Any] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._changed = True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self._engine.device_memory_size_v2
        self._memory = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = self._engine._plan["profiles"][profile_index]
        return not self._package.failed("set_optimization_profile_async", self._engine._logger)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None and name not in self._engine._outputs
        least, _, largest = self._profile[name]
        assert len(shape) == len(least), f"{name} has {len(least)} axes, not {shape}"
        fits = all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))
        if not fits:
            self._engine._logger.log(ILogger.Severity.ERROR, f"{name} {shape} is outside the profile")
        self._shapes[name], self._changed = tuple(shape), True
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine._tensors and memory % 256 == 0
        self._addresses[name] = memory
        return not self._package.failed("set_tensor_address", self._engine._logger)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, with the free axes that the inputs have too."""
        sizes = {
            axis: size
            for given, shape in self._shapes.items()
            for axis, size in zip(self._engine._tensors[given].shape, shape, strict=True)
            if isinstance(axis, str)
        }
        shape = self._engine._tensors[name].shape
        return tuple(axis if isinstance(axis, int) else sizes.get(axis, -1) for axis in shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self._engine, self._package.cuda
        capturing = cuda.others[stream_handle].captured is not None
        if self._package.failed("capture" if capturing else "execute_async_v3", engine._logger):
            return False
        assert self._memory is not None
        assert set(self._addresses) == set(engine._tensors), "a tensor has no address"
        assert {x.name for x in engine._session.get_inputs()} == set(self._shapes), "an input has no shape"
        assert not (capturing and self._changed), "captured before the new shapes were executed once"
        self._changed = False
        bound, shapes, memory = dict(self._addresses), dict(self._shapes), self._memory

        def do() -> None:
            assert not capturing or (bound, shapes) == (self._addresses, self._shapes), (
                "the graph's state is gone"
            )
            self._run(bound, shapes, memory)

        cuda.put(stream_handle, do)
        return True

    def _run(
        self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], memory: tuple[int, int]
    ) -> None:
        engine, cuda = self._engine, self._package.cuda
        cuda.memory.view(*memory)[:] = np.random.Generator(np.random.PCG64(len(self.runs))).integers(
            0, 256, memory[1]
        )
        feeds = {name: self._array(name, addresses[name], shape) for name, shape in shapes.items()}
        self.runs.append(next(iter(feeds.values())).shape)
        # TensorRT may write an output before it has read all inputs, except where it says that they share memory.
        results = engine._session.run(None, {name: x.copy() for name, x in feeds.items()})
        for name, value in zip(engine._outputs, results, strict=True):
            past = PAST + name.removeprefix(PRESENT)
            shared = addresses.get(past) == addresses[name]
            assert shared == bool(engine._plan.get("aliases", True) and name.startswith(PRESENT)), name
            self._array(name, addresses[name], value.shape)[...] = value

    def _array(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        kind = np.dtype(NUMPY_TYPES[self._engine.get_tensor_dtype(name).name])
        size = int(np.prod(shape)) * kind.itemsize
        data = self._package.cuda.memory.view(address, max(size, 1))
        assert self._package.cuda.memory.kind(address) == "device"
        return data[:size].view(kind).reshape(shape)
