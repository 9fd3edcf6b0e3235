"""The table of docs/results-demo.md: its direction on a slice of the test split, and the page that is made of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import results_demo
from demo_sweep import PANELS, candidates, lines, sweep_arms
from safecode_trt.config import SafeCodeConfig
from safecode_trt.eval.arms import Arm
from write_demo_items import write_items

ITEMS = 60


def test_the_direction_of_the_table(demo_bundle: Path, tmp_path: Path) -> None:
    write_items(tmp_path / "world", "test", ITEMS)
    modes = (Arm(name="plain", mode="plain"), Arm(name="safecode-paper", mode="safecode-paper"))
    arms = (*modes, Arm(name="safecode", mode="safecode"))
    found = results_demo.measure(demo_bundle, tmp_path, "test", arms, ITEMS).arms
    plain, paper, ours = (found[arm.name].scores for arm in arms)
    for figure in ("attack_success", "over_refusal"):
        faults = getattr(plain, figure).hits
        assert faults >= ITEMS / 2 * 0.25
        assert getattr(paper, figure).hits <= faults / 2
        assert getattr(ours, figure).hits <= faults / 5
    assert ours.well_formed.share is not None and ours.well_formed.share >= 0.98


def test_the_page_says_what_made_it(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    few = [line for line in lines() if line.setting == "shift_steps"]
    monkeypatch.setattr("demo_sweep.lines", lambda: iter(few))
    monkeypatch.setattr("results_demo.lines", lambda: iter(few))
    monkeypatch.setattr("demo_sweep.candidates", lambda: iter(list(candidates())[:1]))
    monkeypatch.setattr("results_demo.candidates", lambda: iter(list(candidates())[:1]))
    output = tmp_path / "docs" / "page.md"
    options = ["--work", str(tmp_path / "work"), "--output", str(output), "--test", "4", "--validation", "6"]
    monkeypatch.setattr(sys, "argv", ["results_demo.py", str(demo_bundle), *options])
    results_demo.main()
    text = output.read_text()
    assert "no evidence about real models" in text and "--validation 6" in text
    (picture,) = re.findall(r"\]\((\S+\.png)\)", text)
    assert (output.parent / picture).stat().st_size > 10_000
    for mode in ("plain", "safecode", "verdict-gate", "verdict-in-prompt", "safecode without contrast"):
        assert re.search(rf"^\| {mode} \|", text, re.MULTILINE), mode


def test_a_sweep_has_no_two_arms_of_one_name() -> None:
    names = [arm.name for arm in sweep_arms()]
    assert len(set(names)) == len(names) and {"plain", "safecode"} <= set(names)


def test_a_sweep_is_of_settings_as_the_command_line_names_them() -> None:
    known = SafeCodeConfig.__dataclass_fields__
    assert {line.setting for line in lines()} == set(PANELS) <= set(known)
    words = {word for arm in sweep_arms() for word in re.findall(r"([a-z_]+) [\d.]+", arm.name)}
    assert words <= set(known), words - set(known)
