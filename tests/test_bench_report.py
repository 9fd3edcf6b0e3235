"""The report of tools/bench_decode.py says by what it was made, and what it compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bench_decode
from bare_decoder import BreakEven, Comparison
from bench_decode import Measured, write_report
from safecode_trt.bench import timing
from safecode_trt.bench.measure import bench_bundle
from safecode_trt.bench.timing import Spread
from safecode_trt.config import RuntimeConfig
from tests.null_bundle import write_null_bundle


@pytest.mark.parametrize(("same", "tokens"), [(True, "the same best tokens"), (False, "in a near tie")])
def test_the_report_names_its_command(
    same: bool, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LONG", 0.0)
    monkeypatch.setattr(bench_decode, "plot_bench", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench_decode.py", "--repeats", "1"])
    bundle = write_null_bundle(tmp_path / "bundle")
    once = Spread(median=1.0, low=1.0, high=1.0)
    measured = Measured(
        bench=bench_bundle(bundle, runtime=RuntimeConfig(backend="null"), repeats=1, tokens=(4,)),
        break_even=BreakEven(pass_ms={1: 1.0}, fixed_ms=1.0, per_token_ms=1.0, tokens=1.0),
        operators={},
        comparison=Comparison(
            visible_keys=8,
            capacity=8,
            gqa_capacity=8,
            speed=once,
            portable_ms=once,
            gqa_ms=once,
            difference=0.02,
            same_top1=same,
        ),
        processes=None,
    )
    write_report(measured, "bundle", tmp_path)
    report = (tmp_path / "bundle.md").read_text()
    assert "- `python tools/bench_decode.py --repeats 1`" in report
    assert tokens in report and "DIFFERENT" not in report
