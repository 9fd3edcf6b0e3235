"""An engine's file, deserialised, and executions of it: shapes and addresses in, work on a stream out.

TensorRT's "execution context" is an execution here; a context is a row. Executions take their working memory from
whoever makes them, since those of one session never run together.
"""

from __future__ import annotations

import mmap
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecode_trt import remedies
from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.engine_entry import EngineProfile
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.cuda_stream import Buffer, CudaStream
from safecode_trt.runtime.backends.trt_library import TensorRTLibrary

if TYPE_CHECKING:
    import tensorrt
    import tensorrt as tensorrt_10_15
    import tensorrt_rtx

__all__ = ["Execution", "TrtEngine", "choose_profile"]

Shape = tuple[int, ...]
# What an axis counts, and what makes it longer; all others follow from the pictures.
AXES = {"C": ("contexts", "--max-rows")}


class TrtEngine:
    """One graph of a bundle. `memory_bytes` is what an execution of it works in.

    Raises:
        MemoryError: the GPU has no room for the weights.
        BackendError: TensorRT does not take the file, or its inputs and outputs are not those of the graph.
    """

    def __init__(self, library: TensorRTLibrary, path: Path, graph: GraphSpec, stream: CudaStream) -> None:
        self._library, self._path, self._graph, self._stream = library, path, graph, stream
        engine: tensorrt.ICudaEngine = self._deserialise()
        self._engine = engine
        self._check()
        self.memory_bytes = int(engine.device_memory_size_v2)

    def _deserialise(self) -> tensorrt.ICudaEngine:
        trt, log = self._library.trt, self._library.log
        log.errors.clear()
        runtime: tensorrt.Runtime = trt.Runtime(log)
        with (
            self._path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        ):
            engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._library.failed(f"does not load {self._path}")
        return engine

    def _check(self) -> None:
        """Holds the engine's inputs and outputs against the manifest's."""
        trt = self._library.trt
        engine: tensorrt.ICudaEngine = self._engine
        types = {
            trt.DataType.FLOAT: "float32",
            trt.DataType.HALF: "float16",
            trt.DataType.BF16: "bfloat16",
            trt.DataType.INT64: "int64",
        }
        names: list[str] = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        found = {name: types.get(engine.get_tensor_dtype(name), "another type") for name in names}
        wanted = {tensor.name: tensor.dtype for tensor in (*self._graph.inputs, *self._graph.outputs)}
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise self._unfit(
                    f"has {name} in {found.get(name)} where the manifest promises {wanted.get(name)}"
                )
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise self._unfit(f"wants {name} in the host's memory")

    def require_in_place(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Sees to it that each output is written to where its input is. For TensorRT from 10.15 on.

        Raises:
            BackendError: TensorRT would write it elsewhere.
        """
        engine: tensorrt_10_15.ICudaEngine = self._engine
        for past, present in pairs:
            if engine.get_aliased_input_tensor(present) != past:
                raise self._unfit(f"does not write {present} to where {past} is")

    def execution(self, profile: int, memory: Buffer, *, graphs: bool = False) -> Execution:
        """An execution with a profile that works in `memory`; with `graphs`, TensorRT-RTX captures and replays.

        Raises:
            MemoryError: the GPU has no room for what an execution keeps to itself.
            BackendError: TensorRT makes none.
        """
        trt = self._library.trt
        engine: tensorrt.ICudaEngine = self._engine
        self._library.log.errors.clear()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        execution: tensorrt.IExecutionContext | None = (
            _self_capturing(trt, engine, strategy) if graphs else engine.create_execution_context(strategy)
        )
        if execution is None:
            raise self._library.failed(f"makes no execution of {self._path.name}")
        execution.set_device_memory(memory.handle, memory.nbytes)
        chosen: bool = execution.set_optimization_profile_async(profile, self._stream.working())
        if not chosen:
            raise self._library.failed(f"does not take profile {profile} of {self._path.name}")
        return Execution(self._library, self._path.stem, execution, self._stream)

    def _unfit(self, what: str) -> BackendError:
        bundle = self._path.parents[2]  # its engines are in engines/NAME/
        return BackendError(
            f"{self._path} {what}", fix=remedies.build(bundle, "--flavour", self._library.flavour)
        )


class Execution:
    """What is bound stays bound until something else is."""

    def __init__(
        self,
        library: TensorRTLibrary,
        name: str,
        execution: tensorrt.IExecutionContext,
        stream: CudaStream,
    ) -> None:
        self._library, self._name, self._execution, self._stream = library, name, execution, stream
        self.bound: Hashable = None

    def bind(
        self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], *, key: Hashable = None
    ) -> None:
        """Gives inputs their shapes and tensors their addresses; `key` stands for both while they last.

        Raises:
            BackendError: TensorRT does not take a shape.
        """
        self.bound = None
        self._library.log.errors.clear()
        execution: tensorrt.IExecutionContext = self._execution
        for name, shape in shapes.items():
            taken: bool = execution.set_input_shape(name, shape)
            if not taken:
                raise self._library.failed(f"does not take {name} of shape {shape} in {self._name}")
        for name, address in addresses.items():
            placed: bool = execution.set_tensor_address(name, address)
            if not placed:
                raise self._library.failed(f"does not take an address for {name} in {self._name}")
        self.bound = key

    def output_shape(self, name: str) -> Shape:
        """The shape of an output for the inputs' shapes.

        Raises:
            BackendError: they do not say it.
        """
        execution: tensorrt.IExecutionContext = self._execution
        shape = tuple(int(axis) for axis in execution.get_tensor_shape(name))
        if min(shape) < 0:
            raise self._library.failed(f"knows no shape of {name} in {self._name} but {shape}")
        return shape

    def enqueue(self) -> None:
        """Puts one execution on the stream.

        Raises:
            MemoryError: the GPU has no room for it.
            BackendError: TensorRT refuses.
        """
        self._library.log.errors.clear()
        execution: tensorrt.IExecutionContext = self._execution
        started: bool = execution.execute_async_v3(self._stream.working())
        if not started:
            self.bound = None  # what is new in it has not been executed once
            raise self._library.failed(f"failed to execute {self._name}")


def choose_profile(
    profiles: Sequence[EngineProfile], tensors: Iterable[TensorSpec], shapes: Mapping[str, Shape]
) -> int:
    """The place of the profile that takes inputs of these shapes, of several that for the smallest ones.

    Raises:
        BackendError: none does; the message says which axis is too long, and what builds a longer one.
    """
    sizes = {
        axis: size
        for tensor in tensors
        if tensor.name in shapes
        for axis, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        if isinstance(axis, str)
    }
    misfits, fitting = [], []
    for place, profile in enumerate(profiles):
        wrong = [axis for axis, size in sizes.items() if not _in(profile, axis, size)]
        if wrong:
            misfits.append((len(wrong), wrong[0], profile))
        else:
            fitting.append((prod(axis.max for axis in profile.axes.values()), place))
    if fitting:
        return min(fitting)[1]
    _, axis, profile = min(misfits, key=lambda one: one[0])
    known = profile.axes[axis]
    counted, option = AXES.get(axis, (f"of {axis}", "--max-picture"))
    raise BackendError(
        f"the engine takes {known.min} to {known.max} {counted}, got {sizes[axis]}",
        fix=f"build it again with another {option}",
    )


def _in(profile: EngineProfile, axis: str, size: int) -> bool:
    known = profile.axes[axis]
    return known.min <= size <= known.max


def _self_capturing(
    trt_rtx: Any, engine: tensorrt_rtx.ICudaEngine, strategy: Any
) -> tensorrt_rtx.IExecutionContext | None:
    """An execution that keeps a graph of its own for each shape."""
    config: tensorrt_rtx.IRuntimeConfig = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.cuda_graph_strategy = trt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    execution: tensorrt_rtx.IExecutionContext | None = engine.create_execution_context(config)
    return execution
