"""Bundles are read with suspicion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt import bundle as bundle_module
from safecode_trt.bundle import Bundle, write_manifest
from safecode_trt.contract import decoder_graph
from safecode_trt.errors import BundleError
from safecode_trt.manifest import BUNDLE_JSON, DECODER, SCHEMA_VERSION, check_relative
from tests.null_bundle import write_null_bundle

MIDDLE = "tokenizer.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / BUNDLE_JSON).read_text())
    change(manifest)
    (folder / BUNDLE_JSON).write_text(json.dumps(manifest))


def test_a_sound_bundle_opens(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest.schema_version == SCHEMA_VERSION
    assert bundle.file(MIDDLE).read_bytes()


def test_the_manifest_survives_a_rewrite(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, manifest)
    assert Bundle.open(folder).manifest == manifest


def test_a_file_that_is_not_listed(folder: Path) -> None:
    with pytest.raises(BundleError, match="has no engines/x"):
        Bundle.open(folder).file("engines/x")


def test_a_missing_folder_and_a_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder; expected a bundle; fix: safecode-trt export"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "file")


def test_an_empty_folder_and_a_foreign_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"has no {BUNDLE_JSON}"):
        Bundle.open(tmp_path)
    (tmp_path / BUNDLE_JSON).write_text('{"name": "something else"}')
    with pytest.raises(BundleError, match=f"{BUNDLE_JSON}: name is not a known key"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / BUNDLE_JSON).write_text(text)
    with pytest.raises(BundleError, match="is not a bundle manifest"):
        Bundle.open(folder)


def test_a_manifest_that_is_a_folder(folder: Path) -> None:
    (folder / BUNDLE_JSON).unlink()
    (folder / BUNDLE_JSON).mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(folder)


def test_a_manifest_in_another_encoding(folder: Path) -> None:
    (folder / BUNDLE_JSON).write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BundleError, match="is not a bundle manifest"):
        Bundle.open(folder)


def test_unknown_keys_at_every_depth(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["safecode"]["settings"].update(gamma=1))
    with pytest.raises(BundleError, match=r"safecode.settings.gamma is not a known key"):
        Bundle.open(folder)
    edit(folder, lambda manifest: manifest.update(extra=1))
    with pytest.raises(BundleError, match="extra is not a known key"):
        Bundle.open(folder)


def test_a_missing_key(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.pop("geometry"))
    with pytest.raises(BundleError, match="geometry is missing"):
        Bundle.open(folder)


def test_settings_out_of_range(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["safecode"]["settings"].update(alpha=-1))
    with pytest.raises(BundleError, match="alpha must be"):
        Bundle.open(folder)


def test_a_newer_schema_is_named_before_its_keys(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(schema_version=SCHEMA_VERSION + 1, novelty=1))
    with pytest.raises(
        BundleError,
        match=f"schema version {SCHEMA_VERSION + 1} is newer .* pip install --upgrade safecode-trt",
    ):
        Bundle.open(folder)


def test_an_older_schema(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(schema_version=0, novelty=1))
    with pytest.raises(
        BundleError, match=f"schema version 0 is older than {SCHEMA_VERSION}; fix: safecode-trt export"
    ):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a/", "", ".", "a\0b", "a\\..\\b", ".."]
)
def test_paths_that_leave_or_are_not_plain(folder: Path, name: str) -> None:
    edit(folder, lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(BundleError, match="must be relative and stay inside the bundle"):
        Bundle.open(folder)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.onnx", "/", "\\"]), min_size=1).map("/".join))
def test_a_path_that_passes_stays_inside(name: str) -> None:
    try:
        check_relative(name)
    except BundleError:
        return
    inside = os.path.normpath(os.path.join("bundle", name))
    assert inside.startswith("bundle" + os.sep) and inside == os.path.join("bundle", name)


@pytest.mark.parametrize("linked", [MIDDLE, "onnx"])
def test_a_link_out_of_the_bundle(folder: Path, tmp_path: Path, linked: str) -> None:
    outside = tmp_path / "outside"
    (folder / linked).rename(outside)
    (folder / linked).symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(folder)


def test_a_link_inside_is_fine(folder: Path) -> None:
    (folder / MIDDLE).rename(folder / ".other")
    (folder / MIDDLE).symlink_to(".other")
    Bundle.open(folder)


def test_a_link_to_itself(folder: Path) -> None:
    (folder / MIDDLE).unlink()
    (folder / MIDDLE).symlink_to(MIDDLE)
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_a_bundle_behind_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    Bundle.open(tmp_path / "link")


@pytest.mark.parametrize("name", ["chat_template.json", "another.jinja"])
def test_settings_that_the_manifest_does_not_list(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    with pytest.raises(BundleError, match=f"{name} is not listed in bundle.json; .* move it away"):
        Bundle.open(folder, check_hashes=False)


def test_other_files_may_lie_in_a_bundle(folder: Path) -> None:
    for name in ("README.md", ".gitattributes", f".{BUNDLE_JSON}.tmp", "engines/.x.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    Bundle.open(folder)


def test_a_missing_file(folder: Path) -> None:
    (folder / MIDDLE).unlink()
    with pytest.raises(BundleError, match=f"{MIDDLE} is missing"):
        Bundle.open(folder)


def test_a_folder_in_a_files_place(folder: Path) -> None:
    (folder / MIDDLE).unlink()
    (folder / MIDDLE).mkdir()
    with pytest.raises(BundleError, match=f"{MIDDLE} is missing"):
        Bundle.open(folder)


def test_a_truncated_file_is_seen_without_hashes(folder: Path) -> None:
    data = (folder / MIDDLE).read_bytes()
    (folder / MIDDLE).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"expected {len(data)} bytes, found {len(data) - 1}"):
        Bundle.open(folder, check_hashes=False)


def test_a_tampered_file(folder: Path) -> None:
    data = bytearray((folder / MIDDLE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MIDDLE).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{MIDDLE}: expected SHA-256 [0-9a-f]{{16}}\.\.\., found"):
        Bundle.open(folder, check_hashes=False)


def test_large_files_are_hashed_when_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((folder / MIDDLE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MIDDLE).write_bytes(data)
    monkeypatch.setattr(bundle_module, "SMALL", len(data) - 1)
    Bundle.open(folder, check_hashes=False)
    with pytest.raises(BundleError, match=f"{MIDDLE}: expected SHA-256"):
        Bundle.open(folder)


def test_a_decoder_that_breaks_the_contract(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["graphs"][DECODER]["inputs"].pop())
    with pytest.raises(BundleError, match="not those of the contract"):
        Bundle.open(folder)
    edit(folder, lambda manifest: manifest["graphs"].pop(DECODER))
    with pytest.raises(BundleError, match="not those of the contract"):
        Bundle.open(folder)


def test_a_family_may_have_inputs_of_its_own(folder: Path) -> None:
    own = {"name": "own", "dtype": "float32", "shape": ["C", "T", 1]}
    edit(folder, lambda manifest: manifest["graphs"][DECODER]["inputs"].insert(6, own))
    assert Bundle.open(folder).manifest.graphs[DECODER].inputs[6].name == "own"
    edit(folder, lambda manifest: manifest["graphs"][DECODER]["inputs"].insert(0, own))
    with pytest.raises(BundleError, match="not those of the contract"):
        Bundle.open(folder)


def test_a_geometry_that_contradicts_the_graph(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["geometry"].update(head_dim=3))
    with pytest.raises(BundleError, match="not those of the contract"):
        Bundle.open(folder)


def test_precision_decides_the_types(folder: Path) -> None:
    geometry = Bundle.open(folder).manifest.geometry
    assert (
        decoder_graph(geometry, "fp16") != decoder_graph(geometry, "fp32") == decoder_graph(geometry, "int4")
    )
