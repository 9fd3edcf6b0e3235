"""The verb upgrade: a later schema by steps on the manifest alone, all of them or none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from safecode_trt import bundle as bundles
from safecode_trt import manifest, upgrade
from safecode_trt.bundle import Bundle
from safecode_trt.cli import upgrade as verb
from safecode_trt.errors import BundleError
from safecode_trt.manifest import BUNDLE_JSON, DECODER, EMBEDDINGS, FIRST_UPGRADABLE, SCHEMA_VERSION
from tests.cli_runner import call, fails
from tests.null_bundle import write_null_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / BUNDLE_JSON).read_text())
    return found


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def two_later(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of schema 6 where the current one is 8.

    Schema 7 called `source_sha256` by another name, and `max_tiles` came with 8.
    """

    def to_7(old: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**{k: v for k, v in old.items() if k != "checkpoint"}, "source": old["checkpoint"]}

    def to_8(old: Mapping[str, Any]) -> Mapping[str, Any]:
        assert old["schema_version"] == 7
        return {
            **{k: v for k, v in old.items() if k != "source"},
            "source_sha256": old["source"],
            "max_tiles": 3,
        }

    for module in (manifest, bundles, upgrade, verb):
        monkeypatch.setattr(module, "SCHEMA_VERSION", 8)
    monkeypatch.setattr(upgrade, "STEPS", {6: to_7, 7: to_8})
    old = {**document(bundle), "schema_version": 6}
    old["checkpoint"] = old.pop("source_sha256")
    del old["max_tiles"]
    (bundle / BUNDLE_JSON).write_text(json.dumps(old))
    return bundle


def test_there_is_a_step_from_every_schema_that_can_be_upgraded() -> None:
    assert set(upgrade.STEPS) == set(range(FIRST_UPGRADABLE, SCHEMA_VERSION))


def test_a_current_bundle_is_left_alone(bundle: Path) -> None:
    before = snapshot(bundle)
    result = call("upgrade", bundle)
    assert result.exit_code == 0 and result.stderr == ""
    assert f"has schema version {SCHEMA_VERSION}, which is the current one" in result.stdout
    found = json.loads(call("upgrade", bundle, "--json").stdout)
    assert found == {"bundle": str(bundle), "from": SCHEMA_VERSION, "to": SCHEMA_VERSION}
    assert snapshot(bundle) == before


def test_an_older_manifest_is_rewritten_and_nothing_else(two_later: Path) -> None:
    before = snapshot(two_later)
    with pytest.raises(BundleError, match=f"version 6 is older than 8.*safecode-trt upgrade {two_later}"):
        Bundle.open(two_later)
    result = call("upgrade", two_later)
    assert (result.exit_code, result.stdout) == (0, f"{two_later}: schema version 6 is now 8\n"), (
        result.output
    )
    opened = Bundle.open(two_later).manifest
    assert (opened.source_sha256, opened.max_tiles, opened.schema_version) == ("0" * 64, 3, 8)
    after = snapshot(two_later)
    assert {name for name in after if after[name] != before.get(name)} == {str(two_later / BUNDLE_JSON)}
    assert set(after) == set(before)
    assert "nothing to do" in call("upgrade", two_later).stdout


@pytest.mark.parametrize("version", [1, FIRST_UPGRADABLE - 1])
def test_a_schema_with_other_graphs_must_be_exported_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    for module in (manifest, bundles, upgrade, verb):
        monkeypatch.setattr(module, "SCHEMA_VERSION", FIRST_UPGRADABLE)
    old = {**document(bundle), "schema_version": version, "precision": "int4"}
    (bundle / BUNDLE_JSON).write_text(json.dumps(old))
    before = snapshot(bundle)
    command = f"safecode-trt export --model CHECKPOINT --output {bundle} --overwrite --precision int4"
    fails(call("upgrade", bundle), 1, f"schema version {version}")
    fails(call("upgrade", bundle), 1, f"{command} --attention portable")
    with pytest.raises(BundleError, match=f"schema version {version} is older"):
        Bundle.open(bundle)
    assert snapshot(bundle) == before


def test_what_an_old_manifest_says_gets_into_no_command(bundle: Path) -> None:
    old = {**document(bundle), "schema_version": 1, "precision": "int4; rm -rf ~", "attention": ["portable"]}
    (bundle / BUNDLE_JSON).write_text(json.dumps(old))
    result = call("upgrade", bundle)
    assert result.exit_code == 1 and "rm -rf" not in result.output and "--attention" not in result.output


@pytest.mark.parametrize("damage", ["weights", "missing", "unlisted", "no step's input", "step's output"])
def test_a_bundle_that_is_not_whole_is_not_upgraded(
    two_later: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    if damage == "weights":
        data = bytearray((two_later / EMBEDDINGS).read_bytes())
        data[-1] ^= 1
        (two_later / EMBEDDINGS).write_bytes(data)
    elif damage == "missing":
        (two_later / DECODER).unlink()
    elif damage == "unlisted":
        (two_later / "processor_config.json").write_text("{}")
    elif damage == "no step's input":
        old = document(two_later)
        (two_later / BUNDLE_JSON).write_text(json.dumps({k: v for k, v in old.items() if k != "checkpoint"}))
    else:
        monkeypatch.setattr(upgrade, "STEPS", {**upgrade.STEPS, 7: lambda old: {**old, "unknown": 1}})
    before = snapshot(two_later)
    result = call("upgrade", two_later)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1
    said = "not one of schema version 6 (KeyError('checkpoint'))" in result.stderr
    assert said == (damage == "no step's input")
    assert snapshot(two_later) == before


def test_a_write_that_fails_leaves_the_old_manifest(two_later: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    before = (two_later / BUNDLE_JSON).read_bytes()
    monkeypatch.setattr(os, "replace", full)
    fails(call("upgrade", two_later), 1, "No space left on device")
    assert (two_later / BUNDLE_JSON).read_bytes() == before


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"schema_version": "6"}', '{"schema_version": 99}', "{}"]
)
def test_what_is_no_manifest_is_one_error(bundle: Path, content: str) -> None:
    (bundle / BUNDLE_JSON).write_text(content)
    fails(call("upgrade", bundle), 1, str(bundle))
    assert (bundle / BUNDLE_JSON).read_text() == content


def test_a_folder_without_a_manifest_is_one_error(tmp_path: Path) -> None:
    fails(call("upgrade", tmp_path), 1, "has no bundle.json; expected a bundle; fix: safecode-trt export")
