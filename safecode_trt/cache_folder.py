"""The user's cache folder, where what can be made again is kept: what is in it, and how it is removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safecode_trt.errors import SafeCodeError

__all__ = ["CacheEntry", "cache_entries", "cache_folder", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """A file or folder that is kept: its size in bytes, and when it was last used, in seconds since 1970."""

    kind: str
    path: Path
    bytes: int
    used: float


def cache_folder(kind: str = "") -> Path | None:
    """The folder of everything, or of one kind, which need not exist; None for a user without a home."""
    variable, below = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    try:
        base = os.environ.get(variable) or Path.home() / below
    except RuntimeError:
        return None
    return Path(base, "safecode-trt", kind)


def cache_entries() -> tuple[CacheEntry, ...]:
    """Everything in the cache folder, by kind, what was used last first; other processes may change it meanwhile."""
    root = cache_folder()
    entries = [] if root is None else [entry for kind in _children(root) for entry in _entries(kind)]
    return tuple(sorted(entries, key=lambda entry: (entry.kind, -entry.used)))


def remove(entry: CacheEntry) -> None:
    """Removes a file or folder of the cache; what is gone already is no failure.

    Raises:
        SafeCodeError: it cannot be removed.
    """
    try:
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SafeCodeError(f"{entry.path} cannot be removed: {error.strerror or error}") from error


def _entries(kind: Path) -> Iterator[CacheEntry]:
    """What lies in the folder of a kind, or the file that is there instead."""
    folder = kind.is_dir() and not kind.is_symlink()
    for path in _children(kind) if folder else [kind]:
        with suppress(OSError):  # it was removed just now
            used = path.lstat().st_mtime
            yield CacheEntry(kind=kind.name, path=path, bytes=_size(path), used=used)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # there is none, or it is a file
        return []


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(child) for child in _children(path))
