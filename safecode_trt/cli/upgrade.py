"""safecode-trt upgrade: a bundle's manifest in the current schema, without exporting."""

from __future__ import annotations

from pathlib import Path

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json
from safecode_trt.manifest import SCHEMA_VERSION

__all__ = ["command"]


@click.command("upgrade", short_help="Bring a bundle's manifest up to date.")
@click.argument("bundle", type=PATH)
@as_json
def command(bundle: Path, as_json: bool) -> None:
    """Rewrite the manifest of BUNDLE in the current schema, without exporting.

    Graphs and weights stay as they are: their hashes are checked first, and the
    manifest is replaced in one step. A bundle whose graphs have changed since is
    refused with the command that exports it again.

    \b
    Example:
      safecode-trt upgrade build/demo-bundle
    """
    from safecode_trt.upgrade import upgrade_bundle

    found = upgrade_bundle(bundle)
    if as_json:
        console.emit_json({"bundle": str(bundle), "from": found, "to": SCHEMA_VERSION})
    elif found == SCHEMA_VERSION:
        click.echo(f"{bundle} has schema version {found}, which is the current one; nothing to do")
    else:
        click.echo(f"{bundle}: schema version {found} is now {SCHEMA_VERSION}")
