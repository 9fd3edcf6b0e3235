"""Logits that TensorRT has left on the GPU, and the kernels that choose a token there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import BackendError
from safecode_trt.ops.cuda import DeviceStep
from safecode_trt.ops.fused import FusedChoice, FusedStep, why_not_fused
from safecode_trt.policy.base import StepTrace
from safecode_trt.policy.plain import PlainSteering
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.staging_buffer import StagingBuffer
from safecode_trt.runtime.choose import Chosen, HostChooser

__all__ = ["DeviceChooser", "DeviceLogits", "Kernels"]

_log = logging.getLogger(__name__)
_PLAIN = PlainSteering()


class Kernels:
    """The fused step for the refusal tokens of each policy that was asked for. Close it before the stream.

    Where the kernels cannot be had, tokens are chosen on the host, and a warning says why.
    """

    def __init__(self, vocabulary: int, stream: CudaStream) -> None:
        self.vocabulary, self._stream = vocabulary, stream
        self._steps: dict[bytes, DeviceStep] = {}
        self._usable = True

    def choose(self, logits: int, rows: int, step: FusedStep, uniform: float) -> FusedChoice | None:
        """Chooses from the logits (C, V) at an address; None where the kernels cannot be had."""
        if not self._usable:
            return None
        key = step.refusal_ids.tobytes()
        if key not in self._steps:
            try:
                self._steps[key] = DeviceStep(vocabulary=self.vocabulary, refusal_ids=step.refusal_ids)
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
    """The logits (C, Q, V) of the last pass, in `staging` on the device; in a step Q is 1."""

    def __init__(self, staging: StagingBuffer, stream: CudaStream) -> None:
        self._staging, self._stream = staging, stream

    @property
    def address(self) -> int:
        return self._staging.addresses()["logits"]

    @property
    def rows(self) -> int:
        return len(self._staging.host["logits"])

    def fetch(self) -> NDArray[np.float32]:
        """The logits in locked memory."""
        self._staging.download()
        self._stream.synchronize()
        logits: NDArray[Any] = self._staging.host["logits"]  # (C, Q, V)
        return logits


class DeviceChooser:
    """Implements `Chooser` on the device where its kernels do what a step asks for, and on the host elsewhere."""

    def __init__(self, host: HostChooser, kernels: Kernels) -> None:
        self._host, self._kernels = host, kernels
        self._fused: dict[tuple[bool, int, int], FusedStep | None] = {}

    def choose(self, step: int, logits: DeviceLogits, history: Sequence[int]) -> Chosen:
        """The token of a step; see `Chooser.choose`."""
        host, rows = self._host, logits.rows
        uniform, fused = host.sampler(step).uniform(), self._description(step, rows)
        choice = None if fused is None else self._kernels.choose(logits.address, rows, fused, uniform)
        if choice is None or choice.token_id is None:
            return host.choose(step, logits.fetch()[:, 0], history, uniform)
        traced = StepTrace(step=step, candidates=choice.candidates) if host.steered(step) else None
        return choice.token_id, traced

    def _description(self, step: int, rows: int) -> FusedStep | None:
        """A step in the kernels' terms, None if they cannot do it; made once for all steps that are alike."""
        steered = self._host.steered(step)
        key = steered, min(step, self._host.steering.changes), rows
        if key not in self._fused:
            steering = self._host.steering if steered else _PLAIN
            fused = steering.fused(step, self._host.sampler(step).params)
            if (
                fused is not None
                and why_not_fused(fused.settings, self._kernels.vocabulary, rows) is not None
            ):
                fused = None
            self._fused[key] = fused
        return self._fused[key]
