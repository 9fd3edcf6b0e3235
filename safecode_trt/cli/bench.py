"""safecode-trt bench: how long the parts of a reply take on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from safecode_trt.cli.options import FOLDER

__all__ = ["command"]


@click.command("bench", short_help="Measure a bundle on this machine.")
@click.argument("bundle", type=FOLDER)
def command(bundle: Path) -> None:
    """Measure BUNDLE on this machine.

    \b
    Example:
      safecode-trt bench build/demo-bundle
    """
    from safecode_trt.eval.bench import bench_bundle

    bench_bundle(bundle)
