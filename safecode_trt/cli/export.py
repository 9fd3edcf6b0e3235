"""safecode-trt export: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import FOLDER
from safecode_trt.contract import ATTENTION_FORMS, PRECISIONS

__all__ = ["command"]


@click.command("export", short_help="Make a bundle from a checkpoint.")
@click.option("--model", type=FOLDER, required=True, help="Folder of a Hugging Face checkpoint.")
@click.option("--output", type=FOLDER, required=True, help="Folder of the new bundle.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="int4", show_default=True)
@click.option("--context-length", type=int, help="The most tokens of prompt and answer together.")
@click.option(
    "--attention",
    type=click.Choice(ATTENTION_FORMS),
    default="portable",
    show_default=True,
    help="decomposed is for TensorRT before 10.14.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare with transformers.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --output.")
def command(model: Path, output: Path, overwrite: bool, **options: Any) -> None:
    """Make a bundle from a Hugging Face checkpoint folder.

    The bundle is written whole or not at all.

    \b
    Example:
      safecode-trt export --model models/demo --output build/demo-bundle --precision int4
    """
    from safecode_trt.export import ExportConfig, export_bundle

    config = ExportConfig(overwrite=overwrite, **options)
    with console.progress() as progress:
        bundle = export_bundle(model, output, config=config, progress=progress)
    files = bundle.manifest.files.values()
    console.note(f"{len(files)} files, {console.size(sum(file.bytes for file in files))}")
    click.echo(bundle.path)
