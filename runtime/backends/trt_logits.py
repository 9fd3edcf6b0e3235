"""Logits that TensorRT has left on the GPU, and the kernels that choose a token there."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import BackendError
from safecode_trt.ops.cuda import DeviceStep
from safecode_trt.ops.fused import FusedChoice, FusedStep, why_not_fused
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.staging_buffer import StagingBuffer

__all__ = ["Chooser", "DeviceLogits"]

_log = logging.getLogger(__name__)


class Chooser:
    """The fused step for the refusal tokens of each policy that was asked for. Close it before the stream.

    Where the kernels cannot be had, tokens are chosen on the host, and a warning says why.
    """

    def __init__(self, vocabulary: int, stream: CudaStream) -> None:
        self._vocabulary, self._stream = vocabulary, stream
        self._steps: dict[bytes, DeviceStep] = {}
        self._usable = True

    def choose(self, logits: int, rows: int, step: FusedStep, uniform: float) -> FusedChoice | None:
        """Chooses from the logits (C, V) at an address; None if that is for the host."""
        if not self._usable or why_not_fused(step.settings, self._vocabulary, rows) is not None:
            return None
        key = step.refusal_ids.tobytes()
        if key not in self._steps:
            try:
                self._steps[key] = DeviceStep(vocabulary=self._vocabulary, refusal_ids=step.refusal_ids)
            except BackendError as error:
                self._usable = False
                _log.warning("tokens are chosen on the host: %s", str(error))
                return None
        settings, stream = step.settings, self._stream.working()
        return self._steps[key].run(
            logits, rows=rows, half=False, settings=settings, uniform=uniform, stream=stream
        )

    def close(self) -> None:
        """Gives back what the kernels hold."""
        for step in self._steps.values():
            step.close()
        self._steps.clear()


class DeviceLogits:
    """Implements `StepLogits` for the last pass, whose logits (C, V) are in `staging` on the device."""

    def __init__(self, staging: StagingBuffer, stream: CudaStream, chooser: Chooser) -> None:
        self._staging, self._stream, self._chooser = staging, stream, chooser

    def fetch(self) -> NDArray[np.float32]:
        """The logits in locked memory."""
        self._staging.download()
        self._stream.synchronize()
        logits: NDArray[Any] = self._staging.host["logits"]
        return logits

    def choose(self, step: FusedStep, uniform: float) -> FusedChoice | None:
        """A token by the kernels; see `StepLogits.choose`."""
        rows = len(self._staging.host["logits"])
        return self._chooser.choose(self._staging.addresses()["logits"], rows, step, uniform)
