"""What the verbs share in talking to a person: JSON, tables, progress, and text that is safe to show."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from safecode_trt.progress import Progress, no_progress

if TYPE_CHECKING:  # rich takes a tenth of a second; verbs that print no table do without it
    from rich.console import Console

__all__ = ["emit_json", "note", "printable", "progress", "size", "stderr", "stdout"]

PIPE_WIDTH = 120
CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """The text without control characters, which could command the terminal."""
    return text.translate(CONTROL)


def emit_json(value: object) -> None:
    """Writes one JSON document to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A remark on stderr, unless --quiet was given."""
    if not click.get_current_context().find_root().obj:
        click.echo(text, err=True)


def stdout() -> Console:
    """A console for answers; wide enough for tables when piped."""
    return _console(stderr=False)


def stderr() -> Console:
    """A console for everything that is not the answer."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, markup=False, highlight=False, width=None if stream.isatty() else PIPE_WIDTH
    )


def size(count: int) -> str:
    """Bytes for people: 1.5 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar on stderr; silent with --quiet or when stderr is no terminal."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries underneath would draw their own bars into ours
    quiet: Any = click.get_current_context().find_root().obj
    if quiet or not sys.stderr.isatty():
        yield no_progress
        return
    import rich.progress
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=stderr(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report
