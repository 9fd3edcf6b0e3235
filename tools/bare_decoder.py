"""A decoder graph run bare, with everything bound once: what the hardware and ONNX Runtime allow.

Compares the portable graph with the one of gqa_graph.py, and says how many tokens in a wider pass cost as much as
one more pass. Knows nothing of the product's loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.bench.timing import Case, Rounds, Spread, interleaved, lasting
from safecode_trt.bench.workload import VISIBLE_KEYS
from safecode_trt.bundle import Bundle
from safecode_trt.contract import MASKED
from safecode_trt.manifest import DECODER
from safecode_trt.models import load_spec
from safecode_trt.runtime.backends.host_cache import capacity_for
from safecode_trt.runtime.backends.ort import open_graph
from safecode_trt.runtime.rotary import RotaryEmbedding

__all__ = [
    "BreakEven",
    "Comparison",
    "break_even",
    "compare_with_gqa",
    "largest_difference",
    "portable_feeds",
]

Feeds = Mapping[str, NDArray[Any]]
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
PAST = 64
WARM_UP, STEPS = 5, 40
# Activations are rounded to int8 before every product, and a last bit that falls differently goes through all
# layers: 3 % after the 32 layers of a random checkpoint.
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The portable graph against GroupQueryAttention + MatMulNBits, one row, one new token.

    `speed` is how fast the portable one is, in the other's speed; `difference` is between their logits after a
    prefill and some steps, over the largest logit. The portable graph reads its whole cache, which has the
    runtime's size for that many visible keys; the other only what is visible, of a cache of the whole context.
    """

    visible_keys: int
    capacity: int
    gqa_capacity: int
    speed: Spread
    portable_ms: Spread
    gqa_ms: Spread
    difference: float
    same_top1: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Milliseconds of a pass by its number of tokens, each in its fastest round, and the line through them.

    `tokens` is how many more tokens in a pass cost as much as one more pass.
    """

    pass_ms: Mapping[int, float]
    fixed_ms: float
    per_token_ms: float
    tokens: float


def portable_feeds(
    bundle: Bundle, embeds: NDArray[np.float32], past: int, capacity: int
) -> dict[str, NDArray[Any]]:
    """Inputs of the portable decoder for new tokens (1, T, E) after `past` of `capacity` positions."""
    g, new = bundle.manifest.geometry, embeds.shape[1]
    rope = RotaryEmbedding(load_spec(bundle.path).text, g.context_length)
    cos, sin = rope(np.arange(g.context_length))
    positions = np.arange(past, past + new)
    visible = np.arange(capacity) <= positions[:, None]
    return {
        "inputs_embeds": embeds,
        "rope_cos": cos[positions][None],
        "rope_sin": sin[positions][None],
        "write_indices": np.array([past], np.int64),
        "attention_bias": np.where(visible, np.float32(0), np.float32(MASKED))[None, None],
        "logit_positions": np.array([[new - 1]], np.int64),
    }


def gqa_feeds(embeds: NDArray[np.float32], past: int) -> dict[str, NDArray[Any]]:
    """Inputs of the comparison graph for the same pass."""
    visible = past + embeds.shape[1]
    return {
        "inputs_embeds": embeds,
        "seqlens_k": np.array([visible - 1], np.int32),
        "total_sequence_length": np.array(visible, np.int32),
    }


@dataclass(frozen=True, slots=True)
class Bound:
    """An IO binding with the memory that it points to."""

    io: Any
    feeds: Feeds
    logits: NDArray[np.float32]


class BareDecoder:
    """An opened graph with a cache of `rows` rows and `capacity` positions, past and present in the same memory."""

    def __init__(self, session: Any, bundle: Bundle, capacity: int, *, rows: int = 1) -> None:
        g = self._geometry = bundle.manifest.geometry
        self.capacity, self._rows = capacity, rows
        self._session = session
        axes = next(len(output.shape) for output in session.get_outputs() if output.name == "logits")
        self._logits_shape = (rows, *[1] * (axes - 2), g.vocab_size)  # one position, which may have an axis
        shape = (2 * g.num_hidden_layers, rows, g.num_key_value_heads, capacity, g.head_dim)
        self._cache = np.zeros(shape, np.float32)

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """One pass; logits (C, V)."""
        bound = self._bind(feeds)
        self._session.run_with_iobinding(bound.io)
        return bound.logits.reshape(self._rows, -1)

    def repeated(self, feeds: Feeds) -> Case:
        """The same pass over and over, bound once."""
        bound = self._bind(feeds)
        return lasting(lambda: self._session.run_with_iobinding(bound.io))

    def median_step(self, feeds: Feeds) -> float:
        """Seconds of one pass, by many of the same."""
        bound, seconds = self._bind(feeds), []
        for _ in range(WARM_UP + STEPS):
            start = perf_counter()
            self._session.run_with_iobinding(bound.io)
            seconds.append(perf_counter() - start)
        return median(seconds[WARM_UP:])

    def _bind(self, feeds: Feeds) -> Bound:
        logits = np.empty(self._logits_shape, np.float32)
        fixed = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        bound = Bound(self._session.io_binding(), fixed, logits)
        for name, value in fixed.items():
            bound.io.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for slab, data in enumerate(self._cache):
            layer, part = slab // 2, ("key", "value")[slab % 2]
            for bind, name in ((bound.io.bind_input, "past_key_values"), (bound.io.bind_output, "present")):
                bind(f"{name}.{layer}.{part}", "cpu", 0, data.dtype, data.shape, data.ctypes.data)
        bound.io.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return bound


def compare_with_gqa(bundle: Bundle, graph: Path, *, threads: int, repeats: int) -> Comparison:
    """Steps of the bundle's decoder against those of `graph`, which write_gqa_decoder has written."""
    g = bundle.manifest.geometry
    visible = min(VISIBLE_KEYS, g.context_length // 2)
    sizes = {"portable": capacity_for(visible, g.context_length), "gqa": g.context_length}
    paths = {"portable": bundle.file(DECODER), "gqa": graph}
    portable, gqa = (
        BareDecoder(open_graph(path, threads=threads), bundle, g.context_length) for path in paths.values()
    )
    difference, same = largest_difference(portable, gqa, bundle, visible - 1)
    del portable, gqa
    if difference > TOLERANCE:
        raise RuntimeError(
            f"the graphs do not compute the same: logits differ by {difference:.1%} of the largest"
        )
    step = _embeds(bundle, 1)
    feeds = {
        "portable": portable_feeds(bundle, step, visible - 1, sizes["portable"]),
        "gqa": gqa_feeds(step, visible - 1),
    }

    def opened(name: str) -> Case:
        # Opened for each round and closed after it: the idle threads of one would spin on the other's cores.
        def run() -> dict[str, float]:
            decoder = BareDecoder(open_graph(paths[name], threads=threads), bundle, sizes[name])
            return {"step": decoder.median_step(feeds[name])}

        return Case(run)

    rounds = interleaved({name: opened(name) for name in paths}, repeats)
    return Comparison(
        visible_keys=visible,
        capacity=sizes["portable"],
        gqa_capacity=sizes["gqa"],
        speed=rounds.ratio("gqa/step", "portable/step"),
        portable_ms=_ms(rounds, "portable/step"),
        gqa_ms=_ms(rounds, "gqa/step"),
        difference=difference,
        same_top1=same,
    )


def largest_difference(
    portable: BareDecoder, gqa: BareDecoder, bundle: Bundle, prompt: int, steps: int = 2
) -> tuple[float, bool]:
    """How far their logits are apart after a prompt and after each step, over the largest; and the top-1's."""
    worst, same, past = 0.0, True, 0
    for new in [prompt, *[1] * steps]:
        embeds = _embeds(bundle, new, seed=past)
        ours = portable.run(portable_feeds(bundle, embeds, past, portable.capacity))
        theirs = gqa.run(gqa_feeds(embeds, past))
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        same = same and int(ours.argmax()) == int(theirs.argmax())
        past += new
    return worst, same


def break_even(bundle: Bundle, *, threads: int, repeats: int) -> BreakEven:
    """Times passes of one row with more and more tokens."""
    limit = bundle.manifest.geometry.context_length
    widths = [width for width in WIDTHS if PAST + width <= limit]
    session = open_graph(bundle.file(DECODER), threads=threads)
    decoder = BareDecoder(session, bundle, capacity_for(PAST + widths[-1], limit))
    cases = {}
    for width in widths:
        feeds = portable_feeds(bundle, _embeds(bundle, width), PAST, decoder.capacity)
        cases[str(width)] = decoder.repeated(feeds)
    rounds = interleaved(cases, repeats)
    milliseconds = [rounds.spread(str(width)).low * 1e3 for width in widths]
    # Weighted by relative error: otherwise the widest pass alone would decide where the line begins.
    per_token, fixed = np.polyfit(widths, milliseconds, 1, w=1 / np.array(milliseconds))
    return BreakEven(
        pass_ms=dict(zip(widths, milliseconds, strict=True)),
        fixed_ms=float(fixed),
        per_token_ms=float(per_token),
        tokens=float(fixed / per_token),
    )


def _embeds(bundle: Bundle, new: int, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.Generator(np.random.PCG64(seed))
    return draw.standard_normal(
        (1, new, bundle.manifest.geometry.hidden_size), dtype=np.float32
    ) * np.float32(0.5)


def _ms(rounds: Rounds, name: str) -> Spread:
    return rounds.spread(name).scaled(1e3)
