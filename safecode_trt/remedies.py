"""Command lines that mend failures, for `SafeCodeError.fix`. Words in capitals are for the user to fill in."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ["build", "export", "install", "upgrade"]


def export(bundle: Path, *options: str, checkpoint: Path | None = None) -> str:
    """Makes a bundle again from its checkpoint, with further options of `export`."""
    words = ["--model", str(checkpoint or "CHECKPOINT"), "--output", str(bundle), "--overwrite", *options]
    return shlex.join(["safecode-trt", "export", *words])


def build(bundle: Path, *options: str) -> str:
    """Builds a bundle's TensorRT engines again, with further options of `build`."""
    return shlex.join(["safecode-trt", "build", str(bundle), *options])


def install(*extras: str) -> str:
    """Installs what some of this package's extras need."""
    return f"pip install 'safecode-trt[{','.join(extras)}]'"


def upgrade(bundle: Path) -> str:
    """Rewrites a bundle's manifest in the present schema."""
    return shlex.join(["safecode-trt", "upgrade", str(bundle)])
