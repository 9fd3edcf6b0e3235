"""ONNX Runtime through IO binding, on the CPU or on a GPU: which of its providers runs is in `ort_providers.py`.

Past and present of every layer are bound to one address, so the cache is written in place; a pass over fewer rows
binds the same addresses with a smaller first axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from time import perf_counter
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safecode_trt import remedies
from safecode_trt.bundle import Bundle
from safecode_trt.contract import GraphSpec, activation_dtype, vision_dtype
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.device_cache import GrowingCache
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.backends.kept_graphs import open_decoder, vision_entries
from safecode_trt.runtime.backends.ort_binding import Binding, Cache, StepBindings, failed
from safecode_trt.runtime.backends.ort_providers import CPU, OrtProvider, open_graph
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
        self._bindings: WeakKeyDictionary[Cache, StepBindings] = WeakKeyDictionary()

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
            raise failed("the vision encoder", error) from error
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
            raise failed("the decoder", error) from error
        self.decoder_seconds += perf_counter() - start
        others = {name: self._floats.read(value) for name, value in binding.others.items()}
        return DecoderOutputs(logits=binding.logits, others=others)

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> NDArray[np.float32]:
        """`decode`: the logits are on the host; see `Session.step`."""
        return self.decode(feeds, memory).logits[:, 0]

    def chooser(self, host: HostChooser) -> Chooser:
        """The host's own; see `Session.chooser`."""
        return host

    def _binding(self, feeds: DecoderFeeds, memory: Cache, first_row: int, wanted: Sequence[str]) -> Binding:
        """Decode steps repeat, and their bindings are kept; prefill shapes hardly ever do."""
        rows, new, _ = feeds.inputs_embeds.shape
        step = new == 1 and not wanted
        place = (memory.slab(0), memory.capacity)
        steps = self._bindings.get(memory)
        if steps is None or steps.place != place:  # the memory has grown, and lies elsewhere
            steps = self._bindings[memory] = StepBindings(place)
        binding = steps.by_rows.get((first_row, rows)) if step else None
        if binding is None:
            binding = Binding(self._decoder.io_binding(), self._floats, self._device, self._steered)
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
