"""ONNX Runtime on the CPU, through IO binding.

Past and present of every layer are bound to one address, so TensorScatter writes in place; a pass over fewer rows
binds the same addresses with a smaller first axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safecode_trt.bundle import Bundle
from safecode_trt.contract import GraphSpec, vision_dtype
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime.backends.host_cache import HostCache
from safecode_trt.runtime.session import CacheMemory, DecoderFeeds, HostLogits, StepLogits

__all__ = ["OrtSession", "open_graph"]

ORT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
FEEDS = ("inputs_embeds", "rope_cos", "rope_sin", "write_indices", "attention_bias", "logit_positions")


def open_graph(path: Path, *, threads: int = 0, spin: bool = True) -> Any:
    """An onnxruntime.InferenceSession on the CPU provider.

    Raises:
        BackendError: onnxruntime is not installed or does not take the graph.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError("onnxruntime is not installed; run: pip install 'safecode-trt[cpu]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Patterns are kept per input shape, and hardly any two prefills have the same.
    options.enable_mem_pattern = False
    # Level 4 multiplies in int8: at the other levels two rows cost more than two runs of one.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise BackendError(
            f"ONNX Runtime {ort.__version__} does not take {path}: {_first_line(error)}"
        ) from error


class OrtSession:
    """Implements `Session` for a bundle. `decoder_seconds` adds up the time inside ONNX Runtime's decoder.

    `decoder` False opens the vision encoder only, for pictures of a bundle whose decoder needs another backend.
    """

    name = "ort-cpu"

    def __init__(self, bundle: Bundle, *, threads: int = 0, decoder: bool = True) -> None:
        manifest, bf16 = bundle.manifest, bundle.manifest.precision == "bf16"
        if decoder and bf16:
            raise BackendError(
                f"{bundle.path} has a bf16 decoder, for which ONNX Runtime's CPU provider has no kernels; "
                "run it on a GPU backend, or export it with another precision"
            )
        self.geometry = manifest.geometry
        # Of the pictures too: numpy has no bfloat16, and a bf16 decoder is not opened.
        self._dtype = np.dtype(vision_dtype(manifest.precision, manifest.activations))
        # The two graphs never run together: a spinning vision pool would only steal the decoder's cores.
        self.decoder_seconds = 0.0
        self._vision = open_graph(bundle.file(VISION_ENCODER), threads=threads, spin=False)
        self._decoder: Any = open_graph(bundle.file(DECODER), threads=threads) if decoder else None
        self._bindings: WeakKeyDictionary[HostCache, _StepBindings] = WeakKeyDictionary()
        _check_graph(self._vision, manifest.graphs[VISION_ENCODER], VISION_ENCODER)
        if decoder:
            _check_graph(self._decoder, manifest.graphs[DECODER], DECODER)

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
        """The vision encoder's outputs; see `Session.encode`."""
        feeds = {name: self._cast(value) for name, value in inputs.items()}
        try:
            outputs = self._vision.run(None, feeds)
        except Exception as error:  # see open_graph
            raise _failed("the vision encoder", error) from error
        names = (output.name for output in self._vision.get_outputs())
        return {name: np.asarray(x, dtype=np.float32) for name, x in zip(names, outputs, strict=True)}

    def _cast(self, value: NDArray[Any]) -> NDArray[Any]:
        return value.astype(self._dtype, copy=False) if value.dtype == np.float32 else value

    def allocate(self, rows: int) -> CacheMemory:
        """Memory for `rows` rows; see `Session.allocate`."""
        return HostCache.for_decoder(self.geometry, rows, self._dtype)

    def decode(self, feeds: DecoderFeeds, memory: CacheMemory, *, first_row: int = 0) -> NDArray[np.float32]:
        """One pass over C rows; see `Session.decode`."""
        if not isinstance(memory, HostCache):
            raise TypeError(f"expected memory from this session's allocate(), got {type(memory).__name__}")
        rows, new, _ = feeds.inputs_embeds.shape
        steps = self._bindings.get(memory)
        if steps is None or steps.data is not memory.data:  # the memory has grown, and lies elsewhere
            steps = self._bindings[memory] = _StepBindings(memory.data, {})
        binding = steps.by_rows.get((first_row, rows)) if new == 1 else None
        if binding is None:
            slabs = memory.data[:, first_row : first_row + rows]
            binding = _Binding(
                self._decoder.io_binding(), self._dtype, feeds, self.geometry.vocab_size, slabs
            )
            if new == 1:  # Decode steps repeat; prefill shapes hardly ever do.
                steps.by_rows[first_row, rows] = binding
        binding.fill(feeds)
        start = perf_counter()
        try:
            self._decoder.run_with_iobinding(binding.io)
        except Exception as error:  # see open_graph
            raise _failed("the decoder", error) from error
        self.decoder_seconds += perf_counter() - start
        return binding.logits

    def step(self, feeds: DecoderFeeds, memory: CacheMemory) -> StepLogits:
        """`decode`: the logits are on the host; see `Session.step`."""
        return HostLogits(self.decode(feeds, memory))

    def close(self) -> None:
        """Drops the ONNX Runtime sessions."""
        self._bindings.clear()
        self._vision = self._decoder = None


@dataclass(frozen=True, slots=True)
class _StepBindings:
    """The bindings of decode steps to a memory while its contents are in `data`, by first row and rows."""

    data: NDArray[Any]
    by_rows: dict[tuple[int, int], _Binding]


class _Binding:
    """The decoder's inputs and outputs bound for one (C, T, CAP) and rows.

    Inputs are copied into memory that stays bound; what is a row's for all its passes is bound where it is.
    """

    def __init__(
        self, io: Any, dtype: np.dtype[Any], feeds: DecoderFeeds, vocab_size: int, slabs: NDArray[Any]
    ) -> None:
        self.io, self._dtype = io, dtype
        self._copied: dict[str, NDArray[Any]] = {}
        self._kept: dict[str, NDArray[Any]] = {}
        for name, value in _copied(feeds).items():
            self._copied[name] = np.empty(value.shape, dtype if value.dtype == np.float32 else value.dtype)
            self._bind(name, self._copied[name])
        for slab, data in enumerate(slabs):
            layer, part = divmod(slab, 2)
            name = ("key", "value")[part]
            past, present = f"past_key_values.{layer}.{name}", f"present.{layer}.{name}"
            self.io.bind_input(past, "cpu", 0, data.dtype, data.shape, data.ctypes.data)
            self.io.bind_output(present, "cpu", 0, data.dtype, data.shape, data.ctypes.data)
        self.logits = np.empty((slabs.shape[1], vocab_size), np.float32)
        self.io.bind_output("logits", "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data)

    def fill(self, feeds: DecoderFeeds) -> None:
        """Copies the inputs of one pass in and binds the others."""
        for name, value in _copied(feeds).items():
            np.copyto(self._copied[name], value, casting="same_kind")
        for name, value in feeds.row_inputs.items():
            # Kept, because the binding holds no more than its address.
            self._kept[name] = np.ascontiguousarray(value, dtype=self._dtype)
            self._bind(name, self._kept[name])

    def _bind(self, name: str, value: NDArray[Any]) -> None:
        self.io.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)


def _copied(feeds: DecoderFeeds) -> dict[str, NDArray[Any]]:
    return {**{name: getattr(feeds, name) for name in FEEDS}, **feeds.token_inputs}


def _check_graph(session: Any, expected: GraphSpec, name: str) -> None:
    """Holds a graph's inputs and outputs against the manifest; free axes may have any name."""
    for kind, actual, specs in (
        ("input", session.get_inputs(), expected.inputs),
        ("output", session.get_outputs(), expected.outputs),
    ):
        found = [(a.name, ORT_TYPES.get(a.type, a.type), _fixed(a.shape)) for a in actual]
        wanted = [(s.name, s.dtype, _fixed(s.shape)) for s in specs]
        for got, want in zip_longest(found, wanted):
            if got != want:
                raise BackendError(f"{name}: {kind} {got} where the manifest promises {want}; export again")


def _fixed(shape: Iterable[int | str | None]) -> tuple[int | None, ...]:
    return tuple(axis if isinstance(axis, int) else None for axis in shape)


def _failed(what: str, error: Exception) -> BackendError | MemoryError:
    """onnxruntime reports a failed allocation only in the text of a general exception."""
    line = _first_line(error)
    if "alloc" in line.lower():
        return MemoryError(f"out of memory while running {what}: {line}")
    return BackendError(f"ONNX Runtime failed while running {what}: {line}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
