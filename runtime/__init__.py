"""Bundle to tokens: numpy and one backend. Imports neither torch nor transformers nor onnx."""

from safecode_trt.runtime.model import Model
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import Chunk, Reply, Timings
from safecode_trt.runtime.session import Session

__all__ = ["Chunk", "Message", "Model", "Reply", "Session", "Timings"]
