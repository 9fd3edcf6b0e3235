"""The vision encoder on TensorRT: pictures in, features out, in the memory that the decoder works in too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import GraphSpec
from safecode_trt.engine_entry import EngineProfile
from safecode_trt.runtime.backends.cuda_stream import Buffer, CudaStream
from safecode_trt.runtime.backends.staging_buffer import StagingBuffer
from safecode_trt.runtime.backends.trt_engine import TrtEngine, choose_profile

__all__ = ["TrtVision"]


class TrtVision:
    """The vision encoder's engine with its inputs and its outputs."""

    def __init__(
        self,
        engine: TrtEngine,
        graph: GraphSpec,
        profiles: tuple[EngineProfile, ...],
        stream: CudaStream,
        memory: Buffer,
    ) -> None:
        self._graph, self._profiles, self._stream = graph, profiles, stream
        self._types = {tensor.name: tensor.dtype for tensor in graph.inputs}
        self._inputs, self._outputs = StagingBuffer(stream), StagingBuffer(stream)
        self._execution = engine.execution(0, memory)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """The outputs by name.

        Raises:
            MemoryError: the GPU has no room for it.
            BackendError: the engine takes no pictures of this size, or TensorRT fails.
        """
        shapes = {name: value.shape for name, value in inputs.items()}
        choose_profile(self._profiles, self._graph.inputs, shapes)
        self._inputs.lay({name: (self._types[name], shape) for name, shape in shapes.items()})
        for name, value in inputs.items():
            self._inputs.fill(name, value)
        self._inputs.upload()
        self._execution.bind(shapes, self._inputs.addresses())
        self._outputs.lay(
            {x.name: (x.dtype, self._execution.output_shape(x.name)) for x in self._graph.outputs}
        )
        self._execution.bind({}, self._outputs.addresses())
        self._execution.enqueue()
        self._outputs.download()
        self._stream.synchronize()
        return {name: value.astype(np.float32) for name, value in self._outputs.host.items()}
