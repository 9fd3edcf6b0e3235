"""Bundles are written whole or not at all."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle, new_bundle, write_manifest
from safecode_trt.errors import BundleError
from safecode_trt.manifest import BUNDLE_JSON, FileEntry
from tests.null_bundle import write_null_bundle

MIDDLE = "tokenizer.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


class Interrupted(Exception):
    """Something went wrong while the bundle was made."""


def left_in(parent: Path) -> list[str]:
    return sorted(os.listdir(parent))


@pytest.mark.parametrize("failure", [Interrupted, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failed_bundle(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), new_bundle(tmp_path / "new" / "bundle") as folder:
        (folder / "half").write_text("half")
        raise failure
    assert left_in(tmp_path / "new") == []


def test_the_target_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with new_bundle(target) as folder:
        (folder / "file").write_text("whole")
        assert not target.exists()
    assert (target / "file").read_text() == "whole" and left_in(tmp_path) == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_existing_target_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    before = (folder / BUNDLE_JSON).read_bytes()
    with pytest.raises(BundleError, match="exists; fix: pass --overwrite"), new_bundle(folder):
        pytest.fail("the work was begun")
    assert (folder / BUNDLE_JSON).read_bytes() == before and left_in(tmp_path) == ["bundle"]


def test_overwriting_replaces_the_whole(folder: Path, tmp_path: Path) -> None:
    with new_bundle(folder, overwrite=True) as new:
        (new / "only").write_text("")
        assert (folder / MIDDLE).is_file()
    assert left_in(folder) == ["only"] and left_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("failure", [Interrupted, KeyboardInterrupt])
def test_a_failed_overwrite_keeps_the_old(folder: Path, tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), new_bundle(folder, overwrite=True):
        raise failure
    Bundle.open(folder)
    assert left_in(tmp_path) == ["bundle"]


def test_the_old_bundle_comes_back_when_the_rename_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: str | Path) -> Path:
        if Path(target) == folder and not self.name.endswith("-old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with (
        pytest.raises(BundleError, match="written: Input/output error"),
        new_bundle(folder, overwrite=True),
    ):
        monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.undo()
    Bundle.open(folder)
    assert left_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("done", [False, True])
def test_control_c_between_the_renames(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    rename, calls = Path.rename, 0

    def interrupted(self: Path, target: str | Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2 and not done:
            raise KeyboardInterrupt
        moved = rename(self, target)
        if calls == 2:
            raise KeyboardInterrupt
        return moved

    with pytest.raises(KeyboardInterrupt), new_bundle(folder, overwrite=True) as new:
        (new / "only").write_text("")
        monkeypatch.setattr(Path, "rename", interrupted)
    monkeypatch.undo()
    assert left_in(tmp_path) == ["bundle"]
    assert left_in(folder) == ["only"] if done else Bundle.open(folder)


def test_a_link_to_a_bundle_stays_and_leads_to_the_new_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("bundle")
    with new_bundle(tmp_path / "link", overwrite=True) as new:
        (new / "only").write_text("")
    assert left_in(tmp_path) == ["bundle", "link"] and left_in(folder) == ["only"]
    assert (tmp_path / "link").is_symlink()


def test_what_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_text("")
    with (
        pytest.raises(BundleError, match="is not a bundle; it is not overwritten"),
        new_bundle(photos, overwrite=True),
    ):
        pytest.fail("the work was begun")
    assert left_in(photos) == ["a.png"]


def test_a_dangling_link_in_the_targets_place(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="exists"), new_bundle(tmp_path / "bundle"):
        pytest.fail("the work was begun")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"), new_bundle(tmp_path / "file" / "bundle"):
        pytest.fail("the work was begun")


def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(BundleError, match="cannot be written: Read-only file system"),
        new_bundle(tmp_path / "bundle"),
    ):
        pytest.fail("the work was begun")
    assert left_in(tmp_path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="written: No space left"),
        new_bundle(tmp_path / "bundle") as folder,
    ):
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert left_in(tmp_path) == []


def test_a_full_disk_under_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.open(folder).manifest
    changed = replace(manifest, files={**manifest.files, "more": FileEntry(bytes=1, sha256="0")})

    def refuse(*args: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BundleError, match="bundle cannot be written: No space left"):
        write_manifest(folder, changed)
    monkeypatch.undo()
    assert Bundle.open(folder).manifest == manifest
