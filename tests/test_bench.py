"""The benchmark: the arithmetic of interleaved rounds, and every case once. Nothing here depends on how fast it is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bare_decoder import BareDecoder, break_even, compare_with_gqa, largest_difference
from bench_export import best, decoder_export, openings
from gqa_graph import to_matmul_nbits, write_gqa_decoder
from operator_profile import operator_profile
from safecode_trt.bench import timing
from safecode_trt.bench.bench_report import bench_tables, facts
from safecode_trt.bench.bench_result import BenchResult
from safecode_trt.bench.measure import bench_bundle
from safecode_trt.bench.timing import Case, Spread, interleaved, lasting
from safecode_trt.bundle import Bundle
from safecode_trt.cli import program
from safecode_trt.config import RuntimeConfig
from safecode_trt.errors import BundleError, ConfigError
from safecode_trt.manifest import DECODER, EMBEDDINGS
from safecode_trt.runtime.backends.ort_providers import open_graph
from safecode_trt.text_table import markdown
from tests.cli_runner import said
from tests.null_bundle import write_null_bundle

NULL = RuntimeConfig(backend="null")
VARIANTS = {"plain", "cached", "noised"}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run more often than it must be."""
    monkeypatch.setattr(timing, "LONG", 0.0)


@pytest.fixture(scope="module")
def null_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("bench") / "bundle")


@pytest.fixture(scope="module")
def int4_bundle(tiny_checkpoint: Path) -> Bundle:
    pytest.importorskip("torch")
    from safecode_trt.export import ExportConfig, export_bundle

    config = ExportConfig(precision="int4", verify=False)
    return export_bundle(tiny_checkpoint, tiny_checkpoint.with_name("bench-int4"), config=config)


# ---- interleaved rounds


class Clock:
    """Time that passes only when a case says so, and slower and slower."""

    def __init__(self) -> None:
        self.now, self.drift, self.log = 0.0, 1.0, ""

    def __call__(self) -> float:
        return self.now

    def case(self, name: str, seconds: float, count: int = 1) -> Case:
        def run() -> dict[str, float]:
            self.now += seconds * self.drift
            self.drift += 0.001
            self.log += name
            return {"half": seconds / 2}

        return Case(run, count)


def test_rounds_alternate_and_warm_up() -> None:
    clock, done = Clock(), []
    cases = {"a": clock.case("a", 1), "b": clock.case("b", 2)}
    rounds = interleaved(cases, 3, clock=clock, progress=lambda step, now, total: done.append((now, total)))
    assert clock.log == "ab" + "ba" + "ab" + "ba"
    assert {name: len(values) for name, values in rounds.seconds.items()} == dict.fromkeys(
        ("a", "b", "a/half", "b/half"), 3
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_ratio_outlives_a_machine_that_slows_down() -> None:
    clock = Clock()
    rounds = interleaved({"a": clock.case("a", 1), "b": clock.case("b", 2)}, 4, clock=clock)
    ratio = rounds.ratio("b", "a")
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.median == pytest.approx(2, rel=0.005)


def test_a_case_that_counts_is_divided() -> None:
    clock = Clock()
    rounds = interleaved({"ten": clock.case("t", 10, count=10)}, 1, warmups=0, clock=clock)
    assert rounds.spread("ten").median == pytest.approx(1)
    assert rounds.spread("ten/half").median == 5


def test_short_actions_are_repeated_until_they_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG", 0.1)
    clock, calls = Clock(), []

    def action() -> None:
        clock.now += 0.01
        calls.append(1)

    case = lasting(action, clock=clock)
    assert 9 <= case.count <= 10 and len(calls) == 2
    case.run()
    assert len(calls) == 2 + case.count


def test_spread() -> None:
    assert Spread.of((3.0, 1.0, 2.0)) == Spread(median=2.0, low=1.0, high=3.0)
    assert Spread.of((3.0, 1.0, 2.0)).scaled(10) == Spread(median=20.0, low=10.0, high=30.0)


# ---- a bundle


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


def check(result: BenchResult, tokens: tuple[int, ...]) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(data) == {"machine", "bundle", "setup", "ratios", "milliseconds", "shares", "overhead"}
    assert all(map(math.isfinite, numbers(data)))
    names = {ratio["name"] for ratio in data["ratios"]}
    assert {
        "step, 2 rows",
        "step, 3 rows",
        "prefill, 2 rows",
        "prefill, 3 rows",
        "vision, 2 pictures",
    } <= names
    for n in tokens:
        assert {f"reply of {n} tokens, SafeCoDe {kind}" for kind in ("cached", "noised")} <= names
    assert {"open", "step, 1 row", f"reply of {tokens[0]} tokens, plain"} <= set(data["milliseconds"])
    assert f"first token of a reply of {max(tokens)} tokens, plain" in data["milliseconds"]
    assert [share["part"] for share in data["shares"]][-2:] == ["rest", "whole"]
    assert all(set(share["milliseconds"]) == VARIANTS for share in data["shares"])
    assert all(0 <= entry["share"] <= 1 for entry in data["overhead"])
    assert len(data["overhead"]) == 3
    for table in bench_tables(result):
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows)
        assert markdown(table).count("\n") == len(table.rows) + 4
    assert str(result.setup.prompt_tokens) in " ".join(facts(result))


def test_every_case_on_the_null_backend(null_bundle: Path) -> None:
    steps = set()
    result = bench_bundle(
        null_bundle,
        runtime=NULL,
        repeats=2,
        tokens=(6, 12),
        progress=lambda step, done, total: steps.add(step),
    )
    check(result, (6, 12))
    assert steps == {"opening", "measuring"}
    assert result.setup.repeats == 2 and result.machine.backend == "null"


def test_every_case_on_onnx_runtime(int4_bundle: Bundle) -> None:
    result = bench_bundle(
        int4_bundle.path, runtime=RuntimeConfig(threads=1), repeats=1, tokens=(7,), request="I"
    )
    check(result, (7,))
    assert result.bundle.precision == "int4" and result.machine.onnxruntime


def test_replies_that_do_not_fit_are_refused(null_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="tokens must be at most"):
        bench_bundle(null_bundle, runtime=NULL, repeats=1, tokens=(16, 4096))
    with pytest.raises(ConfigError, match="one or more lengths"):
        bench_bundle(null_bundle, runtime=NULL, repeats=1, tokens=())


# ---- the command line


def bench(bundle: Path, *options: str) -> Any:
    fast = ("--backend", "null", "--repeats", "1", "--tokens", "6,8")
    return CliRunner().invoke(program, ["bench", str(bundle), *fast, *options])


def test_the_verb_prints_ratios_first(null_bundle: Path) -> None:
    result = bench(null_bundle)
    assert result.exit_code == 0, result.output
    assert result.stdout.index("Ratios") < result.stdout.index("Milliseconds")
    assert "step, 2 rows" in result.stdout and "SafeCoDe cached" in result.stdout


def test_the_verb_as_json_with_a_plot(null_bundle: Path, tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    result = bench(null_bundle, "--json", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["setup"]["tokens"] == [6, 8]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--tokens", "many"], 2, "whole numbers"),
        (["--tokens", "9999"], 2, "--context-length"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--plot", "missing/folder/bench.png"], 2, "does not exist"),
        (["--plot", "bench.xyz"], 2, "must end in .png, .svg, .pdf"),
    ],
)
def test_usage_mistakes(
    null_bundle: Path,
    options: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench(null_bundle, *options)
    assert result.exit_code == code
    (line,) = said(result.stderr)
    assert words in line


def test_without_matplotlib_the_plot_says_what_to_install(null_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        f"from safecode_trt.cli import program; program.main({['bench', str(null_bundle), '--plot', 'x.png']})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1 and "safecode-trt[eval]" in done.stderr


# ---- the comparison with ONNX Runtime's own operators


def test_matmul_nbits_layout() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).repeat(4).reshape(32, 2)  # K 32, N 2
    packed, scales = to_matmul_nbits(codes, np.array([[0.5, 2.0], [1.0, 3.0]], np.float32), 4)
    assert packed.shape == (2, 2, 8) and scales.tolist() == [[0.5, 1.0], [2.0, 3.0]]
    unpacked = np.stack([packed & 15, packed >> 4], axis=-1).reshape(2, 32)
    assert (unpacked.astype(int) - 8 == codes.T).all()


def test_the_comparison_graph_is_the_same_decoder(int4_bundle: Bundle, tmp_path: Path) -> None:
    graph = tmp_path / "gqa.onnx"
    write_gqa_decoder(int4_bundle, graph)
    length = int4_bundle.manifest.geometry.context_length
    decoders = [
        BareDecoder(open_graph(path, threads=1), int4_bundle, length)
        for path in (int4_bundle.file(DECODER), graph)
    ]
    difference, same = largest_difference(decoders[0], decoders[1], int4_bundle, 20, steps=4)
    assert difference < 1e-3 and same
    comparison = compare_with_gqa(int4_bundle, graph, threads=1, repeats=1)
    assert comparison.visible_keys <= comparison.capacity < comparison.gqa_capacity == length
    assert comparison.speed.median > 0


def test_break_even_has_every_width(int4_bundle: Bundle) -> None:
    even = break_even(int4_bundle, threads=1, repeats=1)
    assert list(even.pass_ms) == [1, 2, 4, 8, 16, 32, 64, 128] and math.isfinite(even.tokens)


def test_the_profile_has_every_operator_of_the_decoder(int4_bundle: Bundle) -> None:
    profile = operator_profile(int4_bundle, threads=1)
    assert {"MatMulNBits", "Attention", "TensorScatter"} <= set(profile)
    assert all(len(rows) == 3 and min(rows) > 0 for rows in profile.values())


# ---- the benchmark of exports


def test_an_export_without_torch_is_measured(tiny_checkpoint: Path) -> None:
    row = decoder_export(tiny_checkpoint, "int4", "portable")
    assert row["torch"] is False and row["peak_above_mb"] < 200 and row["seconds"] >= 0
    assert best([row, {**row, "seconds": -1, "peak_above_mb": 900}]) == {
        **row,
        "seconds": -1,
        "peak_above_mb": 900,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_reads_no_table(tmp_path: Path) -> None:
    """Neither maps its pages nor hashes it; `verify` does."""
    bundle = write_null_bundle(tmp_path / "bundle", vocab_size=80_000)
    for row in openings(bundle, backend="null"):
        assert row["table_mb"] > 40
        assert row["table_resident_mb"] < 1 and row["read_mb"] < 10
    with (bundle / EMBEDDINGS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    openings(bundle, backend="null")
    with pytest.raises(BundleError, match="expected SHA-256"):
        Bundle.open(bundle)
