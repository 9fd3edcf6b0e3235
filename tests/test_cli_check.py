"""verify and inspect: what they find, and how they say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.manifest import BUNDLE_JSON
from tests.cli_runner import call, fails
from tests.null_bundle import DEMO, write_null_bundle


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
        "for the reference picture",
    ):
        assert word in result.stdout
    document = json.loads(call("inspect", bundle, "--json").stdout)
    assert document["model_type"] == "idefics3" and document["files"]


def test_verify_against_the_checkpoint(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    result = call("verify", tiny_bundle.path, "--against", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert "greedy tokens 100.0%" in result.stdout


def test_verify_against_another_checkpoint(tiny_bundle: Bundle) -> None:
    fails(
        call("verify", tiny_bundle.path, "--against", DEMO),
        1,
        "was made of weights and settings with SHA-256",
    )
