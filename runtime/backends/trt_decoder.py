"""Decoder passes on TensorRT: what is bound where, and which execution runs it.

A step of one token is launched as a CUDA graph. TensorRT's graphs hold the addresses and shapes of the execution that
they were captured from, so each has an execution of its own, of which the few used last are kept; TensorRT-RTX captures
by itself, for every shape, inside one execution.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from safecode_trt.contract import Geometry, GraphSpec
from safecode_trt.engine_entry import EngineProfile
from safecode_trt.errors import BackendError
from safecode_trt.runtime.backends.cuda_stream import Buffer, CudaStream, StepGraph
from safecode_trt.runtime.backends.device_cache import DeviceCache
from safecode_trt.runtime.backends.staging_buffer import StagingBuffer
from safecode_trt.runtime.backends.stored_floats import StoredFloats
from safecode_trt.runtime.backends.trt_engine import Execution, TrtEngine, choose_profile
from safecode_trt.runtime.session import DecoderFeeds

__all__ = ["KEPT_STEPS", "TrtDecoder", "chunks"]

KEPT_STEPS = 8
FEEDS = ("inputs_embeds", "rope_cos", "rope_sin", "write_indices", "attention_bias", "logit_positions")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Which profile takes it, the shapes of its inputs, and the rows that it goes over."""

    profile: int
    shapes: Mapping[str, tuple[int, ...]]
    memory: DeviceCache
    first_row: int

    @property
    def place(self) -> tuple[int, int]:
        """What the addresses of all layers follow from."""
        return self.memory.slab(0, self.first_row), self.memory.rows


@dataclass(slots=True)
class _Step:
    """An execution for steps of one token, and the graph of what is bound to it once that has been executed."""

    execution: Execution
    graph: StepGraph | None = None


class TrtDecoder:
    """The decoder's engine with its inputs and its logits.

    All executions work in `memory`. With `scratch`, TensorRT puts all keys and values there, and the new ones are
    fetched from it; without, it writes the new ones into the cache. `self_capturing` is TensorRT-RTX.
    """

    def __init__(
        self,
        engine: TrtEngine,
        graph: GraphSpec,
        profiles: tuple[EngineProfile, ...],
        geometry: Geometry,
        stream: CudaStream,
        *,
        memory: Buffer,
        scratch: DeviceCache | None,
        self_capturing: bool,
    ) -> None:
        self._engine, self._graph, self._profiles = engine, graph, profiles
        self._geometry, self._stream, self._memory = geometry, stream, memory
        self._scratch, self._self_capturing = scratch, self_capturing
        self._types = {tensor.name: tensor.dtype for tensor in graph.inputs}
        self._inputs, self.logits, self.others = (StagingBuffer(stream) for _ in range(3))
        shown = [t for t in graph.outputs if t.name != "logits" and not t.name.startswith("present.")]
        self._others = {tensor.name: tensor.dtype for tensor in shown}
        self._widths = {tensor.name: cast(int, tensor.shape[-1]) for tensor in shown}
        self._steered = {
            tensor.name: cast(int, tensor.shape[-1])
            for tensor in graph.inputs
            if tensor.name.startswith("steer.")
        }
        self._executions: dict[int, Execution] = {}
        self._nothing: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._steps: OrderedDict[Hashable, _Step] = OrderedDict()
        self._capturable = not self_capturing

    @property
    def most_tokens(self) -> int:
        """As many go through the decoder at once."""
        return max(profile.axes["T"].max for profile in self._profiles)

    def run(self, feeds: DecoderFeeds, memory: DeviceCache, first_row: int) -> None:
        """Puts one pass on the stream; `logits` and `others` have its outputs on the device afterwards.

        Raises:
            MemoryError: the GPU has no room for it.
            BackendError: the engine takes no inputs of these sizes, or TensorRT fails.
        """
        arrays = _inputs_of(feeds)
        for name, width in self._steered.items():
            if name not in arrays:
                arrays[name] = self._zeros(feeds.inputs_embeds.shape[:2], width)
        shapes = {name: value.shape for name, value in arrays.items()}
        rows, new = feeds.inputs_embeds.shape[:2]
        profile = choose_profile(self._profiles, self._graph.inputs, shapes)
        self._inputs.lay({name: (self._types[name], shape) for name, shape in shapes.items()})
        for name, value in arrays.items():
            self._inputs.fill(name, value)
        positions = feeds.logit_positions.shape
        self.logits.lay({"logits": ("float32", (*positions, self._geometry.vocab_size))})
        self.others.lay(
            {name: (self._others[name], (rows, new, width)) for name, width in self._widths.items()}
        )
        self._inputs.upload()
        one = _Pass(profile, shapes, memory, first_row)
        addresses = (self._inputs.address, self.logits.address, self.others.address)
        key = (*shapes.values(), *addresses, *one.place)
        if new == 1:
            self._step(key, one)
        else:
            if profile not in self._executions:
                self._executions[profile] = self._engine.execution(profile, self._memory)
            execution = self._executions[profile]
            if execution.bound != key:
                self._bind(execution, key, one)
            execution.enqueue()
        if self._scratch is not None:
            for row, start in enumerate(feeds.write_indices.tolist()):
                memory.take(self._scratch, source=row, target=first_row + row, start=start, count=new)

    def fetch_others(self, wanted: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Outputs of the last pass other than the logits, in float32.

        Raises:
            BackendError: the engine has no such output.
        """
        for name in wanted:
            if name not in self._others:
                raise BackendError(
                    f"the decoder has no output {name}", fix="export with --hidden or --taps PLACE:LAYER"
                )
        self.others.download()
        self._stream.synchronize()
        return {
            name: StoredFloats.of(self._others[name]).read(self.others.host[name]).copy() for name in wanted
        }

    def _zeros(self, shape: tuple[int, ...], width: int) -> NDArray[np.float32]:
        """What is added at a tap where nothing is."""
        key = (*shape, width)
        if key not in self._nothing:
            self._nothing.clear()
            self._nothing[key] = np.zeros(key, np.float32)
        return self._nothing[key]

    def _step(self, key: Hashable, one: _Pass) -> None:
        step = self._step_of(key, one.profile)
        if step.execution.bound != key:
            # What TensorRT does once after a change of shapes is not to be part of a graph.
            step.graph = None
            self._bind(step.execution, key, one)
            step.execution.enqueue()
            return
        if step.graph is None and self._capturable:
            try:
                step.graph = self._stream.capture(step.execution.enqueue)
            except BackendError as error:
                self._capturable = False
                # Not the error itself: whoever keeps the record would keep the cache in the frames below it.
                _log.warning("decode steps run without a CUDA graph: %s", str(error))
        if step.graph is None:
            step.execution.enqueue()
        else:
            self._stream.launch(step.graph)

    def _step_of(self, key: Hashable, profile: int) -> _Step:
        """The execution that is bound to these shapes and addresses, or one to bind to them."""
        place = None if self._self_capturing else key
        step = self._steps.pop(place, None)
        if step is None and len(self._steps) == KEPT_STEPS:
            step = self._steps.popitem(last=False)[1]
        if step is None:
            step = _Step(self._engine.execution(profile, self._memory, graphs=self._self_capturing))
        self._steps[place] = step
        return step

    def _bind(self, execution: Execution, key: Hashable, one: _Pass) -> None:
        g = self._geometry
        cache = (len(self.logits.host["logits"]), g.num_key_value_heads, one.memory.limit, g.head_dim)
        shapes, addresses = (
            dict(one.shapes),
            {
                **self._inputs.addresses(),
                **self.logits.addresses(),
                **self.others.addresses(),
            },
        )
        for slab in range(2 * g.num_hidden_layers):
            name = f"{slab // 2}.{('key', 'value')[slab % 2]}"
            past = present = one.memory.slab(slab, one.first_row)
            if self._scratch is not None:
                present = self._scratch.slab(slab)
            shapes[f"past_key_values.{name}"] = cache
            addresses |= {f"past_key_values.{name}": past, f"present.{name}": present}
        execution.bind(shapes, addresses, key=key)


def _inputs_of(feeds: DecoderFeeds) -> dict[str, NDArray[Any]]:
    """The decoder's inputs by name, without the cache."""
    return {**{name: getattr(feeds, name) for name in FEEDS}, **feeds.token_inputs, **feeds.row_inputs}


def chunks(feeds: DecoderFeeds, most: int) -> Iterator[tuple[DecoderFeeds, NDArray[Any]]]:
    """The pass in parts of at most so many tokens, one after another, and which of the (C, Q) logits each part has."""
    new = feeds.inputs_embeds.shape[1]
    wanted = feeds.logit_positions
    for start in range(0, new, most):
        part = slice(start, start + most)
        has = (wanted >= start) & (wanted < start + most)
        yield (
            replace(
                feeds,
                inputs_embeds=feeds.inputs_embeds[:, part],
                rope_cos=feeds.rope_cos[:, part],
                rope_sin=feeds.rope_sin[:, part],
                write_indices=feeds.write_indices + start,
                attention_bias=feeds.attention_bias[:, :, part],
                logit_positions=(wanted - start).clip(0, min(most, new - start) - 1),
                token_inputs={name: value[:, part] for name, value in feeds.token_inputs.items()},
            ),
            has,
        )
