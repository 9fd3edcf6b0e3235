"""Where what can be made again is kept: the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(part: str) -> Path | None:
    """The folder of one kind of things, which need not exist; None for a user without a home, for whom none is kept."""
    variable, below = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    try:
        base = os.environ.get(variable) or Path.home() / below
    except RuntimeError:
        return None
    return Path(base) / "safecode-trt" / part
