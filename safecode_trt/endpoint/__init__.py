"""A model at an OpenAI-compatible address: bounded time and memory, answers kept on disk."""

from safecode_trt.endpoint.client import (
    KEY_VARIABLE,
    Answer,
    Endpoint,
    EndpointConfig,
    EndpointSettings,
    Question,
)

__all__ = ["KEY_VARIABLE", "Answer", "Endpoint", "EndpointConfig", "EndpointSettings", "Question"]
