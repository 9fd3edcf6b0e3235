"""The engines that `safecode-trt build` makes, on TensorRT or TensorRT-RTX through cuda-python.

Keys and values stay on the GPU and are written in place; a pass over fewer rows binds the same addresses with a smaller
first axis. Everything goes onto one stream, and the vision encoder and the decoder work in the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt import remedies
from safecode_trt.bundle import Bundle
from safecode_trt.contract import Geometry, activation_dtype
from safecode_trt.engine_entry import EngineEntry
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime.backends.cuda_stream import CudaStream
from safecode_trt.runtime.backends.device_cache import DeviceCache
from safecode_trt.runtime.backends.staging_buffer import ALIGNMENT
from safecode_trt.runtime.backends.stored_floats import StoredFloats
from safecode_trt.runtime.backends.trt_decoder import TrtDecoder, chunks
from safecode_trt.runtime.backends.trt_engine import TrtEngine
from safecode_trt.runtime.backends.trt_library import TensorRTLibrary, choose_library
from safecode_trt.runtime.backends.trt_logits import DeviceChooser, DeviceLogits, Kernels
from safecode_trt.runtime.backends.trt_vision import TrtVision
from safecode_trt.runtime.choose import HostChooser
from safecode_trt.runtime.engine_choice import engine_spec
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, DecoderOutputs

__all__ = ["TrtSession"]


class TrtSession:
    """Implements `Session` for a bundle with engines for this machine.

    Raises:
        BackendError: a package, a GPU, the engines for it or room for them are missing, or do not fit together.
    """

    name = "trt"

    def __init__(self, bundle: Bundle) -> None:
        self._vision: Any = None
        self._decoder: Any = None
        self._kernels: Kernels | None = None
        self._stream = CudaStream()
        try:
            self._open(bundle, *choose_library(bundle, self._stream.compute_capability))
        except MemoryError as error:
            self.close()
            raise BackendError(f"the engines of {bundle.path} do not fit: {error}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, bundle: Bundle, library: TensorRTLibrary, entry: EngineEntry) -> None:
        manifest, stream = bundle.manifest, self._stream
        self._geometry = manifest.geometry
        self._dtype = activation_dtype(manifest.precision, manifest.activations)
        if entry.capacity != self._geometry.context_length:
            raise BackendError(
                f"{entry.folder} is for {entry.capacity} positions, the bundle for "
                f"{self._geometry.context_length}",
                fix=remedies.build(bundle.path, "--flavour", entry.flavour),
            )
        _require_aligned(self._geometry, self._dtype)
        decoder = manifest.graphs[DECODER]
        engines = {
            name: TrtEngine(library, bundle.file(entry.graphs[name].file), graph, stream)
            for name, graph in manifest.graphs.items()
        }
        memory = stream.allocate(max(engine.memory_bytes for engine in engines.values()))
        profiles = {name: graph.profiles for name, graph in entry.graphs.items()}
        scratch = None
        if entry.attention == "portable":
            pasts = decoder.inputs[-2 * self._geometry.num_hidden_layers :]
            pairs = zip(pasts, decoder.outputs[-len(pasts) :], strict=True)
            engines[DECODER].require_in_place((past.name, present.name) for past, present in pairs)
        else:
            # Nothing says that TensorRT may write the result of a scatter to where its input is.
            scratch = self._cache(max(profile.axes["C"].max for profile in profiles[DECODER]))
        if not manifest.text_only:
            vision = manifest.graphs[VISION_ENCODER]
            self._vision = TrtVision(
                engines[VISION_ENCODER], vision, profiles[VISION_ENCODER], stream, memory
            )
        self._decoder = TrtDecoder(
            engines[DECODER],
            engine_spec(decoder, entry.capacity),
            profiles[DECODER],
            self._geometry,
            stream,
            memory=memory,
            scratch=scratch,
            self_capturing=library.flavour == "tensorrt-rtx",
        )
        self._kernels = Kernels(self._geometry.vocab_size, stream)
        self._logits = DeviceLogits(self._decoder.logits, stream)

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
        """The vision encoder's outputs; see `Session.encode`."""
        return self._vision.run(inputs)

    def allocate(self, rows: int) -> CacheMemory:
        """Memory for `rows` rows; see `Session.allocate`."""
        return self._cache(rows)

    def decode(
        self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0, wanted: Sequence[str] = ()
    ) -> DecoderOutputs:
        """One pass over C rows, in several parts if the engine takes fewer tokens at once; see `Session.decode`."""
        cache = self._own(memory)
        logits = np.empty((*feeds.logit_positions.shape, self._geometry.vocab_size), np.float32)
        others: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted}
        for part, has in chunks(feeds, self._decoder.most_tokens):
            self._decoder.run(part, cache, first_row)
            if has.any():
                found = self._logits.fetch()
                logits[has] = found[has]
            if wanted:
                for name, value in self._decoder.fetch_others(wanted).items():
                    others[name].append(value)
        return DecoderOutputs(
            logits=logits, others={name: np.concatenate(parts, axis=1) for name, parts in others.items()}
        )

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> DeviceLogits:
        """`decode` of one token, whose logits stay on the GPU until they are fetched; see `Session.step`."""
        self._decoder.run(feeds, self._own(memory), 0)
        return self._logits

    def chooser(self, host: HostChooser) -> DeviceChooser:
        """What chooses on the GPU; see `Session.chooser`."""
        if self._kernels is None:
            raise BackendError("the session is closed")
        return DeviceChooser(host, self._kernels)

    def _own(self, memory: CacheMemory) -> DeviceCache:
        if not isinstance(memory, DeviceCache):
            raise TypeError(f"expected memory from this session's allocate(), got {type(memory).__name__}")
        return memory

    def _cache(self, rows: int) -> DeviceCache:
        return DeviceCache(self._stream, self._geometry, rows, self._dtype)

    def close(self) -> None:
        """Gives the GPU's memory back; a second call does nothing."""
        if self._kernels is not None:
            self._kernels.close()
        self._vision = self._decoder = None
        self._stream.close()


def _require_aligned(geometry: Geometry, dtype: str) -> None:
    """A pass over fewer rows binds the cache from a row on."""
    position = geometry.num_key_value_heads * geometry.head_dim * StoredFloats.of(dtype).storage.itemsize
    row = geometry.context_length * position
    if row % ALIGNMENT:
        raise BackendError(
            f"a row of the cache has {row} bytes, and TensorRT wants multiples of {ALIGNMENT}",
            fix=f"export with a --context-length that {ALIGNMENT // math.gcd(ALIGNMENT, position)} divides",
        )
