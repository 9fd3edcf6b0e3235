"""A decoder's inputs and outputs bound for ONNX Runtime: the cache where it is, the rest in arrays of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import Geometry, TensorSpec
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.device_cache import GrowingCache
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.ort_providers import first_line
from safecode_trt.runtime.backends.stored_floats import StoredFloats
from safecode_trt.runtime.session import DecoderFeeds

__all__ = ["Binding", "Cache", "StepBindings", "failed"]

FEEDS = ("inputs_embeds", "rope_cos", "rope_sin", "write_indices", "attention_bias", "logit_positions")
Cache = HostCache | GrowingCache


@dataclass(frozen=True, slots=True)
class StepBindings:
    """The bindings of decode steps to a memory while it has this address and capacity, by first row and rows."""

    place: tuple[int, int]
    by_rows: dict[tuple[int, int], Binding] = field(default_factory=dict)


class Binding:
    """The decoder's inputs and outputs bound for one (C, T, CAP) and rows.

    Inputs are copied into arrays of ours, which stay bound while their shapes do; the cache is bound where it is.
    """

    def __init__(self, io: Any, floats: StoredFloats, device: str, steered: Mapping[str, int]) -> None:
        self.io, self._floats, self._device, self._steered = io, floats, device, steered
        self._inputs: dict[str, NDArray[Any]] = {}
        self.others: dict[str, NDArray[Any]] = {}

    def bind_outputs(
        self, outputs: Mapping[str, TensorSpec], feeds: DecoderFeeds, wanted: Sequence[str]
    ) -> None:
        """Arrays for the logits (C, Q, V) and for what else is wanted."""
        vocabulary = outputs["logits"].shape[-1]
        self.logits = np.empty((*feeds.logit_positions.shape, cast(int, vocabulary)), np.float32)
        self.io.bind_output("logits", "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data)
        for name in wanted:
            if name not in outputs:
                raise BackendError(
                    f"the decoder has no output {name}", fix="export with --hidden or --taps PLACE:LAYER"
                )
            shape = (*feeds.inputs_embeds.shape[:2], cast(int, outputs[name].shape[-1]))
            found = self.others[name] = np.empty(shape, self._floats.storage)
            self.io.bind_output(name, "cpu", 0, self._floats.type, found.shape, found.ctypes.data)

    def bind_cache(self, geometry: Geometry, memory: Cache, first_row: int, rows: int) -> None:
        """Past and present of every layer at one address."""
        shape = (rows, geometry.num_key_value_heads, memory.capacity, geometry.head_dim)
        for slab in range(2 * geometry.num_hidden_layers):
            layer, part = slab // 2, ("key", "value")[slab % 2]
            place = (self._device, 0, self._floats.type, shape, memory.slab(slab, first_row))
            self.io.bind_input(f"past_key_values.{layer}.{part}", *place)
            self.io.bind_output(f"present.{layer}.{part}", *place)

    def fill(self, feeds: DecoderFeeds) -> None:
        """Copies the inputs of one pass in, and binds what is a row's for all its passes where it is."""
        for name, value in (
            {name: getattr(feeds, name) for name in FEEDS} | dict(feeds.token_inputs)
        ).items():
            bound = self._inputs.get(name)
            # The memory is another reply's now and then, which saw another number of pictures.
            if bound is None or bound.shape != value.shape:
                bound = self._inputs[name] = self._floats.array(value.shape, value.dtype)
                self._bind(name, bound)
            self._floats.fill(bound, value)
            if self._device != "cpu":
                self._bind(name, bound)  # only now: ONNX Runtime copies to a device when it binds
        for name, width in self._steered.items():
            if name not in feeds.token_inputs:
                self._rest(name, (*feeds.inputs_embeds.shape[:2], width))
        for name, value in feeds.row_inputs.items():
            # Kept, because the binding holds no more than its address.
            self._inputs[name] = self._floats.stored(value)
            self._bind(name, self._inputs[name])

    def _rest(self, name: str, shape: tuple[int, ...]) -> None:
        """Zeros for a tap; those that are bound stay so."""
        bound = self._inputs.get(name)
        if bound is None or bound.shape != shape or bound.any():
            self._inputs[name] = np.zeros(shape, self._floats.storage)
            self._bind(name, self._inputs[name])

    def run(self, session: Any) -> None:
        """One pass; a GPU is done with it when this returns."""
        if self._device == "cpu":
            session.run_with_iobinding(self.io)
            return
        self.io.synchronize_inputs()
        session.run_with_iobinding(self.io)
        self.io.synchronize_outputs()

    def _bind(self, name: str, value: NDArray[Any]) -> None:
        kind = self._floats.type if value.dtype == self._floats.storage else value.dtype
        try:
            self.io.bind_input(name, "cpu", 0, kind, value.shape, value.ctypes.data)
        except Exception as error:  # it allocates on a GPU
            raise failed(f"the binding of {name}", error) from error


def failed(what: str, error: Exception) -> BackendError | MemoryError:
    """onnxruntime reports a failed allocation only in the text of a general exception."""
    line = first_line(error)
    if "alloc" in line.lower():
        return MemoryError(f"out of memory while running {what}: {line}")
    return BackendError(f"ONNX Runtime failed while running {what}: {line}")
