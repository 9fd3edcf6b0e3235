"""Files and folders that are written whole or not at all: a reader sees the old one or the new one.

What is new is written under a unique hidden name in the target's own folder, forced to the disk and then renamed, so
that several processes may write the same target. A failure leaves the target as it was.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["new_folder", "replace_folder", "sync_folder", "temporary_path", "write_bytes", "write_text"]

FILE_MODE, FOLDER_MODE = 0o666, 0o777
"""What the process's umask is taken from."""


def write_text(path: Path, text: str, *, mode: int = FILE_MODE) -> None:
    """Writes UTF-8 text with the line ends that it has; as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), mode=mode)


def write_bytes(path: Path, data: bytes | memoryview, *, mode: int = FILE_MODE) -> None:
    """Writes a file. A link stays a link; a terminal or a pipe is written to directly.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(data)
        return
    new = temporary_path(target)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, target)
    except BaseException:  # Ctrl-C, too
        new.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextmanager
def new_folder(target: Path, *, mode: int = FOLDER_MODE) -> Iterator[Path]:
    """Yields a folder to write into, which replaces `target` unless something is raised; nothing else is left.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(target))
    folder = temporary_path(target)
    try:
        folder.mkdir(mode=mode)
        yield folder
        replace_folder(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(folder: Path, target: Path) -> None:
    """Forces a folder to the disk and puts it in the place of `target`, which is put back if that fails.

    Between two renames there is no folder at `target` for a moment: no system call that Python has swaps two.

    Raises:
        OSError: it cannot be moved there.
    """
    _sync_files(folder)
    old = folder.with_name(f"{folder.name}-old")
    try:
        while True:
            with suppress(FileNotFoundError):
                target.rename(old)
            try:
                folder.rename(target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(old, ignore_errors=True)  # another process has put its own there in between
    except BaseException:  # Ctrl-C, too
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)


def temporary_path(target: Path) -> Path:
    """A hidden name next to the target's that nothing has yet."""
    return target.with_name(f".{target.name[:100]}-{secrets.token_hex(8)}")


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_files(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place, name), "r+b") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
