"""Calls the command line in this process or in one of its own, and reads its failures."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from safecode_trt.cli import program
from safecode_trt.cli.options import MADE_UP

ROOT = Path(__file__).parents[1]
ASK = "can i pour water on it?"


def call(*arguments: object, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(program, list(map(str, arguments)), input=text)


def said(stderr: str) -> list[str]:
    """The lines with text on stderr but for the note about the null backend, with which most tests run."""
    return [line for line in stderr.splitlines() if line and line != MADE_UP]


def fails(result: Result, code: int, message: str) -> None:
    """One line on stderr that says what is wrong, and nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = said(result.stderr)
    assert line.startswith("error: ") and message in line, line


def start(
    *arguments: object, entry: Sequence[str] = ("-m", "safecode_trt"), path: Path = ROOT, **options: Any
) -> subprocess.Popen[str]:
    """The program in a process of its own; `path` comes before the checkout in the module search."""
    search = os.pathsep.join(map(str, (path, ROOT)))
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    command = [sys.executable, *entry, *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A suite that runs in a shell's background ignores Ctrl-C, and so would what it starts.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=environment, preexec_fn=default, **{**pipes, **options})
