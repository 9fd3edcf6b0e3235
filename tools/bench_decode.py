"""The benchmark of the project: a bundle's ratios, the portable graph against ONNX Runtime's own, whole processes.

    python tools/bench_decode.py                          the demo bundle
    python tools/bench_decode.py --checkpoint-size 500m   a random checkpoint with the sizes of SmolVLM-500M too

Measure on an idle machine. Writes JSON, Markdown and a picture per bundle into --output-dir.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from bare_decoder import BreakEven, Comparison, break_even, compare_with_gqa
from gqa_graph import write_gqa_decoder
from make_random_checkpoint import make_config, write_checkpoint
from operator_profile import ROWS, Profile, operator_profile
from process_figures import ProcessFigures, process_figures
from random_families import family
from random_tokenizer import RANDOM_REQUEST, RANDOM_SAFECODE
from safecode_trt.bench.bench_plot import plot_bench
from safecode_trt.bench.bench_report import bench_tables, facts, milliseconds, times
from safecode_trt.bench.bench_result import BenchResult
from safecode_trt.bench.measure import REQUEST, TOKENS, bench_bundle
from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.manifest import BUNDLE_JSON
from safecode_trt.records import to_dict
from safecode_trt.runtime.prefill import PASS_COST
from safecode_trt.text_table import TextTable, markdown

ROOT = Path(os.path.relpath(Path(__file__).parents[1]))  # no machine's own paths in the reports
BUILD = ROOT / "build"
PICTURE = ROOT / "examples" / "socket.png"
FAMILY = "idefics3"
CONTEXT = 1024
LEAST_MS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything about one bundle; `comparison` is of int4 bundles, `processes` of the demo."""

    bench: BenchResult
    break_even: BreakEven
    operators: Profile
    comparison: Comparison | None
    processes: ProcessFigures | None


def random_bundle(size: str, folder: Path) -> Path:
    """A bundle in int4 of a random checkpoint of that size, made unless an earlier run has left it."""
    from safecode_trt.export import ExportConfig, export_bundle

    bundle, checkpoint = folder / f"random-{size}-int4", folder / f"random-{size}"
    if (bundle / BUNDLE_JSON).is_file():
        return bundle
    print(f"making {bundle}; later runs use it again, until the folder is removed", file=sys.stderr)
    write_checkpoint(checkpoint, FAMILY, size)
    (checkpoint / "safecode.json").write_text(json.dumps(RANDOM_SAFECODE), encoding="utf-8")
    length = min(CONTEXT, make_config(FAMILY, size).text_config.max_position_embeddings)
    # Random weights have no parity to hold: their top-1 tokens are all but tied.
    config = ExportConfig(precision="int4", context_length=length, verify=False)
    export_bundle(checkpoint, bundle, config=config)
    shutil.rmtree(checkpoint)
    return bundle


def measure(
    path: Path, request: str, output: Path, arguments: argparse.Namespace, *, processes: bool
) -> Measured:
    """Runs everything that applies to the bundle."""
    threads, repeats = arguments.threads, arguments.repeats
    runtime = RuntimeConfig(threads=threads)
    bench = bench_bundle(
        path, runtime=runtime, repeats=repeats, tokens=arguments.tokens, request=request, progress=_note
    )
    bundle, comparison = Bundle.open(path, check_hashes=False), None
    if bundle.manifest.precision == "int4" and bundle.manifest.attention == "portable":
        graph = output / f"{path.name}-gqa.onnx"
        write_gqa_decoder(bundle, graph)
        comparison = compare_with_gqa(bundle, graph, threads=threads, repeats=repeats)
        for file in (graph, graph.with_name(graph.name + ".data")):
            file.unlink()
    return Measured(
        bench=bench,
        break_even=break_even(bundle, threads=threads, repeats=repeats),
        operators=operator_profile(bundle, threads=threads),
        comparison=comparison,
        processes=process_figures(path, PICTURE, REQUEST, repeats=5) if processes else None,
    )


def write_report(measured: Measured, name: str, output: Path) -> None:
    """The JSON, the Markdown and the picture."""
    data = {**to_dict(measured), "bench": measured.bench.to_dict()}
    (output / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    tables = [markdown(table) for table in [*_own_tables(measured), *bench_tables(measured.bench)]]
    command = shlex.join(["python", "tools/bench_decode.py", *sys.argv[1:]])
    said = [*facts(measured.bench), f"`{command}`"]
    lines = [f"# Benchmark of {name}", "", *(f"- {fact}" for fact in said), "", *tables]
    (output / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    plot_bench(measured.bench, output / f"{name}.png")
    print("\n".join(lines))


def _own_tables(measured: Measured) -> Iterator[TextTable]:
    """What this program measures in addition to the product's benchmark."""
    columns = ("what", "value", "min", "max")
    if (c := measured.comparison) is not None:
        title = (
            "The portable graph against GroupQueryAttention + MatMulNBits, both bare, the same int4 weights"
        )
        # The inputs are random vectors: what differs is closer together than twice the difference.
        best = "the same best tokens" if c.same_top1 else "another best token in a near tie"
        rows = [
            ("speed of the portable graph, theirs = 1", *times(c.speed)),
            (f"largest difference of logits, {best}", f"{c.difference:.1e}", "", ""),
        ]
        yield TextTable(title=title, columns=columns, rows=tuple(rows))
        yield milliseconds(
            f"Milliseconds of one step, 1 row, {c.visible_keys} visible",
            [
                (f"portable, a cache of {c.capacity}", c.portable_ms),
                (f"theirs, a cache of {c.gqa_capacity}", c.gqa_ms),
            ],
        )
    even = measured.break_even
    halves = {width: 2 * even.pass_ms[width // 2] for width in even.pass_ms if width // 2 in even.pass_ms}
    yield TextTable(
        title="A wider pass against one more pass, in ms",
        columns=("tokens", *map(str, even.pass_ms)),
        rows=(
            ("in one pass", *(f"{ms:.2f}" for ms in even.pass_ms.values())),
            ("in two of half the width", *(f"{halves[w]:.2f}" if w in halves else "" for w in even.pass_ms)),
        ),
    )
    yield TextTable(
        title="Break-even",
        columns=("what", "value"),
        rows=(
            ("a pass costs, whatever is in it (ms)", f"{even.fixed_ms:.2f}"),
            ("and per token (ms)", f"{even.per_token_ms:.3f}"),
            ("so one more pass costs as much as so many tokens", f"{even.tokens:.1f}"),
            ("what the runtime counts with (PASS_COST)", str(PASS_COST)),
        ),
    )
    yield TextTable(
        title="Milliseconds of a step by operator, under ONNX Runtime's profiler",
        columns=("operator", *(f"{rows} row{'s' if rows > 1 else ''}" for rows in ROWS), "3 against 1"),
        rows=tuple(_operator_row(kind, ms) for kind, ms in measured.operators.items() if ms[0] >= LEAST_MS),
    )
    if (p := measured.processes) is not None:
        yield milliseconds(
            "Whole processes, in ms",
            [
                ("import safecode_trt.runtime beyond numpy and onnxruntime", p.import_s.scaled(1e3)),
                ("process start to first token, SafeCoDe with a picture", p.first_token_s.scaled(1e3)),
            ],
        )
        memory = (("run", f"{p.run_mb:.0f}"), ("demo", f"{p.demo_mb:.0f}"))
        yield TextTable(title="Largest resident memory in MB", columns=("program", "MB"), rows=memory)


def _operator_row(kind: str, ms: Sequence[float]) -> tuple[str, ...]:
    return (kind, *(f"{each:.2f}" for each in ms), f"{ms[-1] / ms[0]:.2f}x")


def _note(step: str, done: int, total: int) -> None:
    print(f"\r{step} {done}/{total} ", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", help="measure this bundle; repeatable")
    parser.add_argument(
        "--checkpoint-size", choices=sorted(family(FAMILY).sizes), help="measure a random checkpoint too"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 (default) takes all cores")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="lengths of the replies")
    parser.add_argument("--output-dir", type=Path, default=BUILD / "bench")
    arguments = parser.parse_args()
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    demo = BUILD / "demo-bundle"
    bundles: list[tuple[Path, str]] = [(path, REQUEST) for path in arguments.bundle or [demo]]
    if arguments.checkpoint_size:
        bundles.append((random_bundle(arguments.checkpoint_size, BUILD), RANDOM_REQUEST))
    for path, request in bundles:
        start = perf_counter()
        processes = path.resolve() == demo.resolve()
        write_report(measure(path, request, output, arguments, processes=processes), path.name, output)
        print(f"{path}: {perf_counter() - start:.0f} s; written into {output}", file=sys.stderr)


if __name__ == "__main__":
    main()
