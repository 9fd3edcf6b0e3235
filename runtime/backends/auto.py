"""The best backend that executes a bundle on this machine, found by executing it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.bundle import Bundle
from safecode_trt.config import Backend, RuntimeConfig
from safecode_trt.contract import GraphSpec
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER
from safecode_trt.progress import Note
from safecode_trt.runtime.session import DecoderFeeds, Session

__all__ = ["ORDER", "open_best", "try_step"]

ORDER: tuple[Backend, ...] = ("trt", "ort-tensorrt", "ort-trt-rtx", "ort-cuda", "ort-cpu")
TOKEN_AXIS, CACHE_AXIS = "T", "CAP"


def open_best(
    bundle: Bundle, config: RuntimeConfig, note: Note, *, opener: Callable[[Bundle, RuntimeConfig], Session]
) -> Session:
    """The first of `ORDER` whose decoder has computed a token; `note` is told it, and why not those before it.

    `opener` opens a backend by its name.

    Raises:
        BackendError: none has.
    """
    reasons = []
    for backend in ORDER:
        try:
            session = opener(bundle, replace(config, backend=backend))
        except (BackendError, MemoryError) as error:
            reasons.append(f"not {backend}: {error}")
            continue
        try:
            try_step(session, bundle)
        except (BackendError, MemoryError) as error:
            session.close()
            reasons.append(f"not {backend}: {error}")
            continue
        note("\n".join([f"backend: {backend}", *(f"  {reason}" for reason in reasons)]))
        return session
    raise BackendError(
        f"no backend runs {bundle.path}: {'; '.join(reasons)}",
        fix=shlex.join(["safecode-trt", "doctor", str(bundle.path)]),
    )


def try_step(session: Session, bundle: Bundle) -> None:
    """Puts one token of zeros through the decoder.

    Raises:
        BackendError: it fails, or its logits are not finite.
    """
    memory = session.allocate(1)
    memory.reserve(1)
    logits = session.decode(_zeros(bundle.manifest.graphs[DECODER], memory.capacity), memory).logits
    if not np.isfinite(logits).all():
        raise BackendError("the decoder computes logits that are not finite numbers")


def _zeros(graph: GraphSpec, capacity: int) -> DecoderFeeds:
    """The decoder's inputs for one row and one token, all zero; axes of the family's own have size 1."""
    sizes = {CACHE_AXIS: capacity}
    made: dict[str, Any] = {}
    token_inputs: dict[str, NDArray[Any]] = {}
    row_inputs: dict[str, NDArray[Any]] = {}
    for spec in graph.inputs:
        if spec.name.startswith("past_key_values."):
            continue
        shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in spec.shape]
        value = np.zeros(shape, np.int64 if spec.dtype == "int64" else np.float32)
        if spec.name in DecoderFeeds.__dataclass_fields__:
            made[spec.name] = value
        else:
            (token_inputs if TOKEN_AXIS in spec.shape else row_inputs)[spec.name] = value
    return DecoderFeeds(**made, token_inputs=token_inputs, row_inputs=row_inputs)
