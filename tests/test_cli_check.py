"""verify, inspect and doctor: what they find, and how they say it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.cli import probe
from safecode_trt.contract import ATTENTION_FORMS, AttentionForm
from safecode_trt.manifest import BUNDLE_JSON
from tests.cli_runner import call, fails
from tests.null_bundle import DEMO, write_null_bundle

PROBED: dict[AttentionForm, set[str]] = {
    "portable": {"TensorScatter", "Attention"},
    "decomposed": {"MatMul", "Softmax"},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


def test_verify_says_what_it_checked(bundle: Path) -> None:
    result = call("verify", bundle)
    assert result.exit_code == 0 and "files as they were written" in result.stdout
    assert json.loads(call("verify", bundle, "--json").stdout)["parity"] is None


def test_verify_finds_a_changed_byte(bundle: Path) -> None:
    data = bytearray((bundle / "tokenizer.json").read_bytes())
    data[99] ^= 1
    (bundle / "tokenizer.json").write_bytes(data)
    fails(call("verify", bundle), 1, "tokenizer.json: expected SHA-256")
    fails(call("run", bundle, "hello", "--backend", "null"), 1, "tokenizer.json: expected SHA-256")


def test_a_hostile_manifest_is_one_line(bundle: Path) -> None:
    manifest = json.loads((bundle / BUNDLE_JSON).read_text())
    manifest["files"]["../\x1b[2J\nx"] = {"bytes": 1, "sha256": ""}
    (bundle / BUNDLE_JSON).write_text(json.dumps(manifest))
    result = call("inspect", bundle)
    fails(result, 1, "must be relative and stay inside the bundle")
    assert "\x1b" not in result.stderr


def test_inspect_shows_files_graphs_and_settings(bundle: Path) -> None:
    result = call("inspect", bundle)
    assert result.exit_code == 0
    for word in (
        "tokenizer.json",
        "decoder.onnx",
        "past_key_values.*.key",
        "idefics3",
        "alpha 1.0",
        "parity:",
    ):
        assert word in result.stdout
    document = json.loads(call("inspect", bundle, "--json").stdout)
    assert document["model_type"] == "idefics3" and document["files"]


def test_doctor_executes_the_probe() -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {check["state"] for check in checks.values()} <= {"ok", "warn"}
    assert "executed a decomposed attention" in checks["onnxruntime"]["detail"]
    assert "executed a portable attention" in checks["opset 24"]["detail"]
    assert checks["memory"]["detail"].endswith("cores")


def test_doctor_reports_a_broken_bundle_among_the_rest(tmp_path: Path) -> None:
    result = call("doctor", tmp_path)
    assert result.exit_code == 1 and "fail  bundle" in result.stdout
    assert result.stderr == "error: this machine is not ready; see the lines marked fail\n"


def test_doctor_notices_wrong_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    right = probe.expected()
    monkeypatch.setattr(probe, "expected", lambda: right + 1)
    result = call("doctor")
    assert result.exit_code == 1 and "fail  onnxruntime" in result.stdout and "wrongly" in result.stdout


def test_doctor_without_opset_24_still_allows_the_decomposed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    graph_bytes = probe.graph_bytes
    monkeypatch.setattr(probe, "graph_bytes", lambda form: b"x" if form == "portable" else graph_bytes(form))
    result = call("doctor")
    assert result.exit_code == 0 and "warn  opset 24" in result.stdout


@pytest.mark.parametrize("form", ATTENTION_FORMS)
def test_the_probe_is_a_valid_model(form: AttentionForm) -> None:
    model = onnx.load_from_string(probe.graph_bytes(form))
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} >= PROBED[form]
    assert [given.name for given in model.graph.input] == list(probe.feeds(form))


def test_doctor_asks_the_bundle_for_a_token(tiny_bundle: Bundle) -> None:
    result = call("doctor", tiny_bundle.path)
    assert result.exit_code == 0 and "answered one token" in result.stdout


def test_verify_against_the_checkpoint(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    result = call("verify", tiny_bundle.path, "--against", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert "greedy tokens 100.0%" in result.stdout


def test_verify_against_another_checkpoint(tiny_bundle: Bundle) -> None:
    fails(call("verify", tiny_bundle.path, "--against", DEMO), 1, "was made of a checkpoint with SHA-256")
