"""A benchmark as tables of text, which the command line and the tools print each in their way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safecode_trt.bench.bench_result import BenchResult, Share
from safecode_trt.bench.timing import Spread
from safecode_trt.machine import Machine
from safecode_trt.text_table import TextTable

__all__ = ["bench_tables", "facts", "machine_line", "milliseconds", "times"]


def facts(result: BenchResult) -> list[str]:
    """What was measured, on what and how, in a few lines."""
    bundle, setup, g = result.bundle, result.setup, result.bundle.geometry
    pictures = {0: "no picture", 1: "1 picture"}.get(setup.pictures, f"{setup.pictures} tiles")
    return [
        machine_line(result.machine),
        f"{bundle.path}: {bundle.model_type}, {bundle.precision}, {g.num_hidden_layers} layers, hidden "
        f"{g.hidden_size}, vocabulary {g.vocab_size}, {g.context_length} positions"
        + (f", {g.image_seq_len} for the reference picture" if g.image_seq_len else ""),
        f"{setup.repeats} interleaved rounds; a prompt of {setup.prompt_tokens} tokens with {pictures}, a judge's "
        f"of {setup.judge_tokens}; steps see {setup.visible_keys} positions of {setup.capacity} allocated"
        + (f"; the cached reference's prefix is {setup.cached_prefix}" if g.image_seq_len else ""),
    ]


def machine_line(machine: Machine) -> str:
    """The machine in one line."""
    threads = machine.threads or "one per core"
    runtime = f"ONNX Runtime {machine.onnxruntime}" if machine.onnxruntime else "no ONNX Runtime"
    return f"{machine.cpu}, {machine.cores} cores, threads: {threads}; {machine.backend}, {runtime}; {machine.date}"


def bench_tables(result: BenchResult) -> list[TextTable]:
    """Ratios first."""
    ratios = [
        (ratio.name, ratio.base, *times(ratio.times), f"{100 * (ratio.times.median - 1):+.0f} %")
        for ratio in result.ratios
    ]
    tokens = max(result.setup.tokens)
    others = [name for name in result.shares[0].milliseconds if name != "plain"]
    shares = [_beside(share, others) for share in result.shares]
    overhead = [
        (o.step, f"{o.step_ms:.2f}", f"{o.outside_ms:.3f}", f"{o.binding_ms:.3f}", f"{o.share:.1%}")
        for o in result.overhead
    ]
    return [
        _table("Ratios within a round", ("what", "against", "median", "min", "max", "more"), ratios),
        _table(
            f"Where a reply of {tokens} tokens spends its milliseconds",
            ("part", "plain", *(head for name in others for head in (name, "against plain"))),
            shares,
        ),
        _table(
            "A decode step in ms, and what of it is outside the executing library",
            ("step", "whole", "outside", "of it binding", "outside"),
            overhead,
        ),
        milliseconds("Milliseconds", result.milliseconds.items()),
    ]


def milliseconds(title: str, values: Iterable[tuple[str, Spread]]) -> TextTable:
    """A table of times."""
    rows = [(name, *(f"{v:.2f}" for v in (ms.median, ms.low, ms.high))) for name, ms in values]
    return _table(title, ("what", "median", "min", "max"), rows)


def times(spread: Spread) -> tuple[str, str, str]:
    """A ratio's median, minimum and maximum."""
    return f"{spread.median:.2f}x", f"{spread.low:.2f}", f"{spread.high:.2f}"


def _beside(share: Share, others: Sequence[str]) -> tuple[str, ...]:
    """A part's row: plain decoding, then each other kind and how much more it takes."""
    ms = share.milliseconds
    cells = (cell for name in others for cell in (f"{ms[name]:.1f}", f"{ms[name] - ms['plain']:+.1f}"))
    return share.part, f"{ms['plain']:.1f}", *cells


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> TextTable:
    return TextTable(title=title, columns=columns, rows=tuple(rows))
