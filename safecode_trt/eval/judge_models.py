"""The models that judge answers: one at an address, or a local bundle. They know no rubric."""

from __future__ import annotations

import io
from pathlib import Path

from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.endpoint import Endpoint, EndpointConfig, Question
from safecode_trt.engine import Engine
from safecode_trt.eval.runner import bundle_digest
from safecode_trt.runtime.image import open_picture

__all__ = ["BundleModel", "EndpointModel"]

MAX_TOKENS = 200


class EndpointModel:
    """A model at an OpenAI-compatible address."""

    def __init__(self, config: EndpointConfig) -> None:
        self._endpoint = Endpoint(config)
        self.name = f"{config.model} at {config.shown}"

    def say(self, text: str, picture: Path | None) -> str:
        """The model's words; as `JudgeModel`."""
        pictures = () if picture is None else (_png(picture),)
        question = Question(text=text, pictures=pictures, max_tokens=MAX_TOKENS)
        return self._endpoint.ask(question, lambda answer: answer.text)

    def close(self) -> None:
        """Nothing is held."""


class BundleModel:
    """A bundle on this machine, asked by plain greedy decoding."""

    def __init__(self, path: Path, runtime: RuntimeConfig) -> None:
        self._engine = Engine.open(path, config=runtime)
        manifest = self._engine.bundle.manifest
        self.name = f"the bundle {manifest.model_type} {bundle_digest(manifest)[:12]}"

    def say(self, text: str, picture: Path | None) -> str:
        """The model's words; as `JudgeModel`."""
        sampling = SamplingParams(max_new_tokens=MAX_TOKENS)
        return self._engine.generate(text, image=picture, sampling=sampling, mode="plain").text

    def close(self) -> None:
        """Releases the backend."""
        self._engine.close()


def _png(path: Path) -> bytes:
    """A picture as it is sent: decoded here, so that nothing but pixels leaves the machine."""
    buffer = io.BytesIO()
    open_picture(path).save(buffer, format="PNG")
    return buffer.getvalue()
