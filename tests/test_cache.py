"""The verb cache, as a user has it: what is kept, for which bundle, and what is gone after --clear."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.ops import cubin
from safecode_trt.runtime.backends import kept_graphs
from tests.cli_runner import call, fails

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
REQUEST = "can i pour water on it?"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, with every decoder being a large one, and a compiler of kernels that needs no CUDA."""
    monkeypatch.setenv(
        "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path / "cache")
    )
    monkeypatch.setattr(kept_graphs, "LARGE", 1)
    monkeypatch.setattr(cubin, "compile_kernels", lambda architecture: b"machine code " * 100)
    return tmp_path / "cache" / "safecode-trt"


def ask(bundle: Path, *options: str) -> str:
    result = call("run", bundle, REQUEST, "--max-new-tokens", 4, "--threads", 1, *options)
    assert result.exit_code == 0, result.output
    return result.stdout


def kept(*arguments: object) -> dict[str, Any]:
    result = call("cache", "--json", *arguments)
    assert result.exit_code == 0 and result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_nothing_is_kept_before_the_first_run(folder: Path) -> None:
    assert kept() == {"folder": str(folder), "cleared": False, "bytes": 0, "entries": []}
    assert call("cache").stdout == f"nothing is kept in {folder}\n"
    assert call("cache", "--clear").exit_code == 0 and not folder.exists()


def test_it_shows_and_clears_what_is_there(folder: Path, demo_bundle: Path, tmp_path: Path) -> None:
    first = ask(demo_bundle)
    cubin.load_cubin("sm_87")
    found = kept()
    graphs, kernels = found["entries"]
    assert (graphs["kind"], graphs["bundle"]) == ("graphs", str(demo_bundle.resolve()))
    assert (kernels["kind"], kernels["bundle"]) == ("kernels", None)
    assert found["bytes"] == graphs["bytes"] + kernels["bytes"] == on_disk(folder)
    for entry in (graphs, kernels):
        path, at = Path(entry["path"]), datetime.fromisoformat(entry["last_used"])
        assert path.is_relative_to(folder) and abs(path.stat().st_mtime - at.timestamp()) < 1
    lines = call("cache").stdout.splitlines()
    assert len(lines) == 3 and lines[0].endswith(str(demo_bundle.resolve()))
    assert lines[-1].startswith("kept: ") and str(folder) in lines[-1]

    cleared = kept("--clear")
    assert cleared["cleared"] and cleared["entries"] == found["entries"]
    assert on_disk(folder) == 0 and kept()["entries"] == []
    assert ask(demo_bundle) == first and len(kept()["entries"]) == 1


def test_one_bundle_is_cleared_whether_it_is_there_or_a_copy_or_gone(
    folder: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(demo_bundle, copy)
    ask(copy)
    cubin.load_cubin("sm_87")
    assert [entry["bundle"] for entry in kept(copy)["entries"]] == [str(copy)]
    assert kept(demo_bundle)["entries"] == kept(copy)["entries"], "the same graphs and weights"
    assert kept(other)["entries"] == []
    assert f"nothing is kept in {folder}" in call("cache", other, "--clear").stdout
    shutil.rmtree(copy)
    said = call("cache", copy, "--clear").stdout.splitlines()
    assert len(said) == 2 and said[-1].startswith("removed: ") and str(copy) in said[-1]
    assert [entry["kind"] for entry in kept()["entries"]] == ["kernels"]


def test_when_it_was_used_last_is_known(folder: Path, demo_bundle: Path) -> None:
    ask(demo_bundle)
    cubin.load_cubin("sm_87")
    for entry in kept()["entries"]:
        os.utime(entry["path"], (1e9, 1e9))
    assert {entry["last_used"][:4] for entry in kept()["entries"]} == {"2001"}
    ask(demo_bundle)
    cubin.load_cubin("sm_87")
    assert "2001" not in {entry["last_used"][:4] for entry in kept()["entries"]}


def test_no_kept_graphs_keeps_and_takes_none(folder: Path, demo_bundle: Path) -> None:
    first = ask(demo_bundle, "--no-kept-graphs")
    assert kept()["entries"] == []
    ask(demo_bundle)
    (entry,) = kept()["entries"]
    os.utime(entry["path"], (1e9, 1e9))
    assert ask(demo_bundle, "--no-kept-graphs") == first
    assert call("doctor", demo_bundle, "--no-kept-graphs").exit_code == 0
    assert kept()["entries"] == [{**entry, "last_used": "2001-09-09T01:46:40+00:00"}]


def test_what_is_left_half_written_or_foreign_is_shown_and_cleared(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    (folder / "graphs" / ".young").mkdir(parents=True)
    (folder / "graphs" / ".young" / "decoder.onnx").write_bytes(b"x" * 10)
    (folder / "graphs" / "broken").mkdir()
    (folder / "graphs" / "broken" / kept_graphs.RECORD).write_text("[")
    (folder / "graphs" / "link").symlink_to(outside)
    (folder / "file").write_bytes(b"y" * 5)
    found = kept("--clear")
    assert len(found["entries"]) == 4 and {entry["bundle"] for entry in found["entries"]} == {None}
    assert kept()["entries"] == [] and (outside / "precious").read_text() == "stays"


def test_a_removal_that_fails_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "graphs" / "kept").mkdir(parents=True)

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refused)
    fails(call("cache", "--clear"), 1, "kept cannot be removed: Permission denied")


def test_without_a_home_there_is_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert kept() == {"folder": None, "cleared": False, "bytes": 0, "entries": []}
    assert call("cache").stdout == "nothing is kept in the cache folder\n"
