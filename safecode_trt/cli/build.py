"""safecode-trt build: a bundle's graphs become TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import PATH
from safecode_trt.engine_entry import FLAVOURS

__all__ = ["command"]


@click.command("build", short_help="Make TensorRT engines of a bundle.")
@click.argument("bundle", type=PATH)
@click.option(
    "--flavour",
    type=click.Choice(FLAVOURS),
    required=True,
    help="tensorrt builds for the GPU of this machine; tensorrt-rtx needs none.",
)
@click.option(
    "--sm",
    "compute_capabilities",
    metavar="86,89,120",
    help="Compute capabilities to build for: by default these, or this machine's GPU.",
)
@click.option("--max-rows", type=int, default=3, show_default=True, help="The most contexts of a reply.")
@click.option("--max-prefill", type=int, default=1024, show_default=True, help="The most tokens at once.")
@click.option(
    "--max-picture",
    metavar="WxH",
    default="1280x960",
    show_default=True,
    help="How large the pictures are, where that decides their tokens.",
)
@click.option(
    "--opt-level",
    type=int,
    help="0 to 5: how long TensorRT looks for fast kernels; by default as it sees fit.",
)
@click.option(
    "--workspace-mib",
    type=int,
    help="The most memory that kernels may take: by default all that the GPU has.",
)
@click.option("--timing-cache", type=PATH, help="File of measurements, read and written; tensorrt only.")
def command(bundle: Path, compute_capabilities: str | None, max_picture: str, **options: Any) -> None:
    """Make TensorRT engines of BUNDLE's graphs and enter them in its manifest.

    The bundle changes only when every engine is whole. A decoder in a form that this TensorRT does not take is
    rewritten into one that it does.

    \b
    Example:
      safecode-trt build build/demo-bundle --flavour tensorrt-rtx --sm 86,89
    """
    from safecode_trt.export.build import build_engines
    from safecode_trt.export.engine_config import EngineConfig, parse_picture, parse_sm

    config = EngineConfig(
        compute_capabilities=parse_sm(compute_capabilities), max_picture=parse_picture(max_picture), **options
    )
    with console.progress() as progress:
        engine = build_engines(bundle, config, progress=progress, note=console.note)
    for graph in engine.graphs.values():
        path = bundle / graph.file
        console.note(f"{path.name}: {graph.seconds:g} s, {console.size(path.stat().st_size)}")
    click.echo(bundle / engine.folder)
