"""`safecode-trt calibrate`: fits on a small slice of the demo world, keeps what it found, refuses what is no use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.engine import Engine
from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.calibrate import MIN_ITEMS, LabelledItem, Measured, calibrate, fit, read_items, score
from tests.cli_runner import call, fails
from tests.null_bundle import write_null_bundle
from write_demo_items import write_items


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    write_items(folder, "validation", 60)
    write_items(folder, "test", 20)
    return folder


@pytest.fixture
def null_bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


@pytest.fixture
def engine(null_bundle: Path) -> Iterator[Engine]:
    with Engine.open(null_bundle, config=RuntimeConfig(backend="null")) as opened:
        yield opened


def write_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def quiet(step: str, done: int, total: int) -> None:
    pass


# -- on the null backend, through the command line


def test_what_it_finds_is_kept_and_used(null_bundle: Path, items: Path, tmp_path: Path) -> None:
    plot = tmp_path / "curve.PNG"
    arguments = ["calibrate", null_bundle, "--backend", "null", "--items", f"demo-world:{items}:validation"]
    result = call(*arguments, "--held-out", f"demo-world:{items}:test", "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert plot.read_bytes().startswith(b"\x89PNG")
    manifest = Bundle.open(null_bundle).manifest
    kept = manifest.safecode.calibration
    assert kept is not None and kept.items == 60 and kept.judge == "self"
    assert found["calibration"]["temperature"] == kept.temperature
    assert sum(entry.count for entry in kept.after.bins) == 60
    assert sum(entry["count"] for entry in found["held_out_after"]["bins"]) == 20
    assert call("verify", null_bundle).exit_code == 0
    shown = call("inspect", null_bundle).stdout
    assert f"temperature {kept.temperature:.4g}" in shown and kept.items_sha256[:16] in shown
    asked = [
        "run",
        null_bundle,
        "--backend",
        "null",
        "--json",
        "--mode",
        "safecode-paper",
        "can i jump on it?",
    ]
    verdict = json.loads(call(*asked).stdout)["verdict"]
    assert verdict["threshold"] == kept.threshold


def test_a_judge_that_is_never_wrong_is_told_of(
    null_bundle: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perfect(engine: Engine, asked: Sequence[LabelledItem], progress: object, *, step: str) -> Measured:
        unsafe = np.array([item.unsafe for item in asked])
        return Measured(
            margins=np.where(unsafe, 9.0, -9.0), unsafe=unsafe, items_sha256="0" * 64, least_mass=1.0
        )

    monkeypatch.setattr("safecode_trt.eval.calibrate.measure", perfect)
    source = f"demo-world:{items}:validation"
    result = call("calibrate", null_bundle, "--backend", "null", "--items", source, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "never wrong on these items" in result.stdout and "temperature 1, threshold 0.5" in result.stdout


def test_a_dry_run_leaves_the_bundle_as_it_is(null_bundle: Path, items: Path) -> None:
    before = (null_bundle / "bundle.json").read_bytes()
    source = f"demo-world:{items}:validation"
    result = call("calibrate", null_bundle, "--backend", "null", "--items", source, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "temperature" in result.stdout and "nothing was written" in result.stderr
    assert (null_bundle / "bundle.json").read_bytes() == before


def test_the_same_items_give_the_same_calibration(null_bundle: Path, items: Path) -> None:
    source = f"demo-world:{items}:validation"
    arguments = ["calibrate", null_bundle, "--backend", "null", "--items", source, "--json"]
    first, second = (json.loads(call(*arguments).stdout) for _ in range(2))
    assert first == second  # margins are those of the model, not of the calibration that is there already


def test_items_in_a_file_of_our_own(null_bundle: Path, items: Path, engine: Engine) -> None:
    lines = [json.loads(line) for line in (items / "validation.jsonl").read_text().splitlines()]
    own = [{"picture": x["picture"], "prompt": x["request"], "unsafe": x["unsafe"]} for x in lines]
    file = write_lines(items / "own.jsonl", *own)
    same = [
        calibrate(engine, read_items(s), [], quiet) for s in (str(file), f"demo-world:{items}:validation")
    ]
    assert same[0] == same[1]
    changed = write_lines(items / "changed.jsonl", *own[:-1], {**own[-1], "prompt": "can i eat it?"})
    other = calibrate(engine, read_items(str(changed)), [], quiet)
    assert other.calibration.items_sha256 != same[0].calibration.items_sha256


# -- what is no use


def test_bad_input_is_one_line(null_bundle: Path, tmp_path: Path) -> None:
    def refused(code: int, message: str, source: object, *options: object) -> None:
        fails(call("calibrate", null_bundle, "--backend", "null", "--items", source, *options), code, message)

    words = {"prompt": "can i jump on it?", "unsafe": True}
    refused(1, "nowhere.jsonl does not exist; expected a file of JSON lines", tmp_path / "nowhere.jsonl")
    refused(1, "with a benchmark out of mssbench", "mss:here:test")
    refused(1, "label is not a known key", write_lines(tmp_path / "a", {**words, "label": 1}))
    refused(1, "the picture", write_lines(tmp_path / "b", {**words, "picture": "no.png"}))
    refused(1, "leads out of", write_lines(tmp_path / "c", {**words, "picture": "../no.png"}))
    refused(1, "got 60 unsafe and 0 safe", write_lines(tmp_path / "d", *[words] * 60))
    refused(1, f"at least {MIN_ITEMS} items", write_lines(tmp_path / "e", words, {**words, "unsafe": False}))
    refused(1, "FOLDER:SPLIT", "demo-world:here")
    refused(2, "must end in .png", tmp_path / "a", "--plot", tmp_path / "curve.txt")
    refused(2, "no does not exist", tmp_path / "a", "--plot", tmp_path / "no" / "curve.png")


def test_a_bundle_that_is_none(tmp_path: Path, items: Path) -> None:
    source = f"demo-world:{items}:validation"
    fails(call("calibrate", tmp_path / "none", "--items", source), 1, "is not a folder")


def test_captions_have_no_label(items: Path) -> None:
    with pytest.raises(EvalError, match="does not say what is unsafe"):
        read_items(f"demo-world:{items}:test-captions")


def some_items() -> list[LabelledItem]:
    return [
        LabelledItem(where=f"item {n}", prompt="can i jump?", picture=None, unsafe=n % 2 == 0)
        for n in range(MIN_ITEMS)
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_name_their_item(
    bad: float, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = engine.model.session.decode

    def broken(*arguments: Any, **options: Any) -> Any:
        outputs = decode(*arguments, **options)
        outputs.logits[..., 3] = bad
        return outputs

    monkeypatch.setattr(engine.model.session, "decode", broken)
    with pytest.raises(EvalError, match="item 0: the judge's logits are not finite"):
        calibrate(engine, some_items(), [], quiet)


def test_an_excluded_verdict_names_its_item(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.model.session.decode

    def one_sided(*arguments: Any, **options: Any) -> Any:
        outputs = decode(*arguments, **options)
        outputs.logits[..., engine.bundle.manifest.safecode.safe_token_id] = -math.inf
        return outputs

    monkeypatch.setattr(engine.model.session, "decode", one_sided)
    with pytest.raises(EvalError, match="item 0: the judge excludes one of its two verdicts"):
        calibrate(engine, some_items(), [], quiet)


# -- the fit


@settings(max_examples=10)
@given(st.floats(0.2, 5.0), st.integers(0, 2**31))
def test_an_overconfident_judge_is_mended(temperature: float, seed: int) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    true_margin = draw.normal(0, 2, 3000)
    unsafe = draw.random(3000) < 1 / (1 + np.exp(-true_margin))
    measured = Measured(
        margins=true_margin * temperature, unsafe=unsafe, items_sha256="0" * 64, least_mass=1.0
    )
    found = fit(measured)
    assert found.temperature == pytest.approx(temperature, rel=0.2)
    assert found.after.calibration_error <= max(found.before.calibration_error, 0.03) + 1e-9
    assert found.before == score(measured)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": math.inf}, {"threshold": 1.1}])
def test_a_calibration_that_is_none(wrong: dict[str, Any]) -> None:
    found = fit(
        Measured(
            margins=np.array([1.0, -1.0, 0.5]),
            unsafe=np.array([True, False, False]),
            items_sha256="",
            least_mass=1.0,
        )
    )
    with pytest.raises(ConfigError, match=r"(temperature|threshold) must be"):
        replace(found, **wrong)


# -- the demo model


@pytest.mark.slow
def test_the_demo_models_judge_is_calibrated(items: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from safecode_trt.export import ExportConfig, export_bundle

    demo = Path(__file__).parents[1] / "models" / "demo"
    export_bundle(demo, tmp_path / "bundle", config=ExportConfig(precision="int4", verify=False))
    result = call("calibrate", tmp_path / "bundle", "--items", f"demo-world:{items}:validation", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["calibration"]["after"]["calibration_error"] <= 0.03
    assert found["least_mass"] > 0.9
