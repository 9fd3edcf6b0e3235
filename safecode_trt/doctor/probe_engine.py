"""The probe's decoder as an engine of TensorRT or TensorRT-RTX: built for the GPU that is here, and executed on it.

`tensorrt.X` in an annotation is a class of either package, as in the builder of bundles' engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from safecode_trt.doctor import probe
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.staging_buffer import StagingBuffer

if TYPE_CHECKING:
    import tensorrt

__all__ = ["run_engine"]


def run_engine(trt: Any, dtype: probe.Dtype) -> dict[str, NDArray[Any]]:
    """The outputs of the decomposed form, which every version of either package knows.

    Raises:
        BackendError: TensorRT does not build or execute it, or there is no GPU.
    """
    stream = CudaStream()
    try:
        return _executed(trt, dtype, stream)
    finally:
        stream.close()


def _executed(trt: Any, dtype: probe.Dtype, stream: CudaStream) -> dict[str, NDArray[Any]]:
    log: tensorrt.Logger = trt.Logger(trt.Logger.ERROR)
    plan: tensorrt.IHostMemory = _build(trt, log, probe.graph_path("decomposed", dtype).read_bytes())
    runtime: tensorrt.Runtime = trt.Runtime(log)
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{trt.__name__} {trt.__version__} does not load its own engine on this GPU")
    execution: tensorrt.IExecutionContext = engine.create_execution_context()
    feeds = probe.feeds(dtype)
    inputs, outputs = StagingBuffer(stream), StagingBuffer(stream)
    inputs.lay({name: (str(x.dtype), x.shape) for name, x in feeds.items()})
    outputs.lay({name: (dtype, x.shape) for name, x in probe.expected(dtype).items()})
    for name, address in {**inputs.addresses(), **outputs.addresses()}.items():
        execution.set_tensor_address(name, address)
    for name, value in feeds.items():
        inputs.fill(name, value)
    inputs.upload()
    enqueued: bool = execution.execute_async_v3(stream.working())
    if not enqueued:
        raise BackendError(f"{trt.__name__} {trt.__version__} does not execute its engine")
    outputs.download()
    stream.synchronize()
    return {name: value.copy() for name, value in outputs.host.items()}


def _build(trt: Any, log: tensorrt.Logger, model: bytes) -> tensorrt.IHostMemory:
    builder: tensorrt.Builder = trt.Builder(log)
    network: tensorrt.INetworkDefinition = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
    parsed: bool = parser.parse(model)
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    plan: tensorrt.IHostMemory | None = builder.build_serialized_network(network, config) if parsed else None
    if plan is None:
        raise BackendError(f"{trt.__name__} {trt.__version__} does not build a decoder of one layer")
    return plan
