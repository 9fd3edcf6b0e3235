"""Files and folders written whole or not at all: by several processes, on a full disk, under any umask."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from safecode_trt import atomic

SIZE, ROUNDS = 1 << 18, 40


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _write_files(path: Path, letter: bytes) -> None:
    for _ in range(ROUNDS):
        atomic.write_bytes(path, letter * SIZE)


def _write_folders(path: Path, letter: bytes) -> None:
    for _ in range(ROUNDS):
        with atomic.new_folder(path) as folder:
            for name in ("a", "b"):
                (folder / name).write_bytes(letter * 1000)


def _together(work: object, path: Path) -> list[multiprocessing.Process]:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(path, letter)) for letter in (b"x", b"y")]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    return processes  # type: ignore[return-value]


def test_two_processes_never_leave_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"x" * SIZE)
    processes = _together(_write_files, path)
    while any(process.is_alive() for process in processes):
        data = path.read_bytes()
        assert len(data) == SIZE and len(set(data)) == 1
    assert [process.exitcode for process in processes] == [0, 0]
    assert os.listdir(tmp_path) == ["file"]


def test_two_processes_leave_one_of_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    processes = _together(_write_folders, path)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert os.listdir(tmp_path) == ["folder"]
    assert len({(path / name).read_bytes() for name in ("a", "b")}) == 1


def test_the_modes_are_those_of_the_umask(tmp_path: Path, umask: None) -> None:
    atomic.write_text(tmp_path / "file", "text")
    atomic.write_bytes(tmp_path / "secret", b"", mode=0o600)
    with atomic.new_folder(tmp_path / "folder") as folder:
        (folder / "inside").touch()
    modes = [mode(tmp_path / name) for name in ("file", "secret", "folder")]
    assert modes == [0o640, 0o600, 0o750]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    atomic.write_text(path, "old")
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_control_c_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic.new_folder(tmp_path / "folder") as folder:
        (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), atomic.new_folder(tmp_path / "folder") as folder:
        (folder / "new").touch()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["old"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    atomic.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == "text"
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


def test_what_is_no_file_is_written_to_directly(tmp_path: Path) -> None:
    atomic.write_text(Path(os.devnull), "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    atomic.write_text(path, "text")
    assert path.read_text() == "text"
