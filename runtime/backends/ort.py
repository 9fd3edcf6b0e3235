"""ONNX Runtime through IO binding, on the CPU or on a GPU: which of its providers runs is in `ort_providers.py`.

Past and present of every layer are bound to one address, so the cache is written in place; a pass over fewer rows
binds the same addresses with a smaller first axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from time import perf_counter
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safecode_trt import remedies
from safecode_trt.bundle import Bundle
from safecode_trt.contract import Geometry, GraphSpec, TensorSpec, activation_dtype, vision_dtype
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.device_cache import GrowingCache
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.kept_graphs import open_decoder, vision_entries
from safecode_trt.runtime.backends.ort_providers import CPU, OrtProvider, first_line, open_graph
from safecode_trt.runtime.backends.stored_floats import StoredFloats
from safecode_trt.runtime.choose import Chooser, HostChooser
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, DecoderOutputs

__all__ = ["OrtSession", "open_graph"]

ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
}
FEEDS = ("inputs_embeds", "rope_cos", "rope_sin", "write_indices", "attention_bias", "logit_positions")
Cache = HostCache | GrowingCache


class OrtSession:
    """Implements `Session` for a bundle. `decoder_seconds` adds up the time inside ONNX Runtime's decoder.

    `decoder` False opens the vision encoder only, for pictures of a bundle whose decoder needs another backend.
    `keep_graphs` and `check_hashes` are as in `RuntimeConfig`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: OrtProvider = CPU,
        threads: int = 0,
        decoder: bool = True,
        allow_cpu_fallback: bool = False,
        keep_graphs: bool = False,
        check_hashes: bool = False,
    ) -> None:
        manifest = bundle.manifest
        if decoder:
            _check_decoder(bundle, provider)
        self.name: str = provider.backend
        self.geometry = manifest.geometry
        self.decoder_seconds = 0.0
        self._device = provider.device
        self._pictures = np.dtype(vision_dtype(manifest.precision, manifest.activations))
        self._floats = StoredFloats.of(activation_dtype(manifest.precision, manifest.activations))
        decoder_spec = manifest.graphs[DECODER]
        widths = {tensor.name: cast(int, tensor.shape[-1]) for tensor in decoder_spec.inputs}
        self._steered = {tap.steer: widths[tap.steer] for tap in manifest.taps}
        self._outputs = {tensor.name: tensor for tensor in decoder_spec.outputs}
        self._bindings: WeakKeyDictionary[Cache, _StepBindings] = WeakKeyDictionary()

        opened = partial(
            open_graph, provider=provider, threads=threads, allow_cpu_fallback=allow_cpu_fallback
        )
        on_cpu = provider is CPU
        self._vision: Any = None
        self._decoder: Any = None
        if not manifest.text_only:
            # The two graphs never run together: a spinning vision pool would only steal the decoder's cores.
            entries = vision_entries(bundle) if on_cpu else {}
            self._vision = opened(
                bundle.file(VISION_ENCODER),
                spin=False,
                entries=entries,
                shape_nodes=manifest.shape_nodes.get(VISION_ENCODER, ()),
            )
            _check_graph(bundle, self._vision, manifest.graphs[VISION_ENCODER], VISION_ENCODER)
        if decoder:
            keep = keep_graphs and on_cpu
            shapes = manifest.shape_nodes.get(DECODER, ())
            opened = partial(opened, shape_nodes=shapes)
            self._decoder = open_decoder(bundle, opened, keep=keep, check_hashes=check_hashes)
            _check_graph(bundle, self._decoder, manifest.graphs[DECODER], DECODER)
        self._stream = CudaStream() if self._device == "cuda" else None

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
        """The vision encoder's outputs; see `Session.encode`."""
        feeds = {
            name: value.astype(self._pictures, copy=False) if value.dtype == np.float32 else value
            for name, value in inputs.items()
        }
        try:
            outputs = self._vision.run(None, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise _failed("the vision encoder", error) from error
        names = (output.name for output in self._vision.get_outputs())
        return {name: np.asarray(x, dtype=np.float32) for name, x in zip(names, outputs, strict=True)}

    def allocate(self, rows: int) -> CacheMemory:
        """Memory for `rows` rows, where the provider computes; see `Session.allocate`."""
        if self._stream is None:
            return HostCache.for_decoder(self.geometry, rows, self._floats.storage)
        return GrowingCache(self._stream, self.geometry, rows, self._floats.dtype)

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        """One pass over C rows; see `Session.decode`."""
        if not isinstance(memory, HostCache if self._stream is None else GrowingCache):
            raise TypeError(f"expected memory from this session's allocate(), got {type(memory).__name__}")
        binding = self._binding(feeds, memory, first_row, wanted)
        binding.fill(feeds)
        if self._stream is not None:
            self._stream.synchronize()  # ONNX Runtime has a stream of its own
        start = perf_counter()
        try:
            binding.run(self._decoder)
        except Exception as error:  # see encode
            raise _failed("the decoder", error) from error
        self.decoder_seconds += perf_counter() - start
        others = {name: self._floats.read(value) for name, value in binding.others.items()}
        return DecoderOutputs(logits=binding.logits, others=others)

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> NDArray[np.float32]:
        """`decode`: the logits are on the host; see `Session.step`."""
        return self.decode(feeds, memory).logits[:, 0]

    def chooser(self, host: HostChooser) -> Chooser:
        """The host's own; see `Session.chooser`."""
        return host

    def _binding(self, feeds: DecoderFeeds, memory: Cache, first_row: int, wanted: Sequence[str]) -> _Binding:
        """Decode steps repeat, and their bindings are kept; prefill shapes hardly ever do."""
        rows, new, _ = feeds.inputs_embeds.shape
        step = new == 1 and not wanted
        place = (memory.slab(0), memory.capacity)
        steps = self._bindings.get(memory)
        if steps is None or steps.place != place:  # the memory has grown, and lies elsewhere
            steps = self._bindings[memory] = _StepBindings(place)
        binding = steps.by_rows.get((first_row, rows)) if step else None
        if binding is None:
            binding = _Binding(self._decoder.io_binding(), self._floats, self._device, self._steered)
            binding.bind_cache(self.geometry, memory, first_row, rows)
            binding.bind_outputs(self._outputs, feeds, wanted)
            if step:
                steps.by_rows[first_row, rows] = binding
        return binding

    def close(self) -> None:
        """Drops the ONNX Runtime sessions, and what the caches have on a GPU."""
        self._bindings.clear()
        self._vision = self._decoder = None
        if self._stream is not None:
            self._stream.close()


@dataclass(frozen=True, slots=True)
class _StepBindings:
    """The bindings of decode steps to a memory while it has this address and capacity, by first row and rows."""

    place: tuple[int, int]
    by_rows: dict[tuple[int, int], _Binding] = field(default_factory=dict)


class _Binding:
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
            raise _failed(f"the binding of {name}", error) from error


def _check_decoder(bundle: Bundle, provider: OrtProvider) -> None:
    """What can be told of a decoder without opening it."""
    manifest = bundle.manifest
    if manifest.precision == "bf16" and provider.device == "cpu":
        raise BackendError(
            f"{bundle.path} has a bf16 decoder, for which ONNX Runtime's CPU provider has no kernels",
            fix=f"choose a --backend with a GPU, or run {remedies.export(bundle.path, '--precision', 'fp32')}",
        )
    if manifest.attention == "decomposed" and not provider.scatters_in_place:
        raise BackendError(
            f"{provider.backend} does not promise to write the cache of a decomposed decoder in place",
            fix="choose --backend ort-cuda or trt, or run "
            f"{remedies.export(bundle.path, '--attention', 'portable')}",
        )


def _check_graph(bundle: Bundle, session: Any, expected: GraphSpec, name: str) -> None:
    """Holds a graph's inputs and outputs against the manifest; free axes may have any name."""
    for kind, actual, specs in (
        ("input", session.get_inputs(), expected.inputs),
        ("output", session.get_outputs(), expected.outputs),
    ):
        found = [(a.name, ORT_TYPES.get(a.type, a.type), _fixed(a.shape)) for a in actual]
        wanted = [(s.name, s.dtype, _fixed(s.shape)) for s in specs]
        for got, want in zip_longest(found, wanted):
            if got != want:
                raise BackendError(
                    f"{name}: {kind} {got} where the manifest promises {want}",
                    fix=remedies.export(bundle.path),
                )


def _fixed(shape: Iterable[int | str | None]) -> tuple[int | None, ...]:
    return tuple(axis if isinstance(axis, int) else None for axis in shape)


def _failed(what: str, error: Exception) -> BackendError | MemoryError:
    """onnxruntime reports a failed allocation only in the text of a general exception."""
    line = first_line(error)
    if "alloc" in line.lower():
        return MemoryError(f"out of memory while running {what}: {line}")
    return BackendError(f"ONNX Runtime failed while running {what}: {line}")
