"""safecode-trt cache: what is kept in the user's cache folder, and how it is cleared."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from safecode_trt.cache_folder import CacheEntry, cache_entries, cache_folder, remove
from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json

__all__ = ["command"]


@click.command("cache", short_help="Show or clear what is kept on disk.")
@click.argument("bundle", type=PATH, required=False)
@click.option("--clear", is_flag=True, help="Remove it; of BUNDLE only, if that is given.")
@as_json
def command(bundle: Path | None, clear: bool, as_json: bool) -> None:
    """Show the optimised graphs and compiled kernels in the cache folder, or those of BUNDLE.

    All of it is made again when it is needed. BUNDLE need not exist any more.

    \b
    Example:
      safecode-trt cache
      safecode-trt cache build/demo-bundle --clear
    """
    from safecode_trt.runtime.backends.kept_graphs import made_of

    found = cache_entries()
    if bundle is not None:
        paths = made_of(bundle, (entry.path for entry in found))
        found = tuple(entry for entry in found if entry.path in paths)
    described = [_described(entry) for entry in found]
    if clear:
        for entry in found:
            remove(entry)
    folder, total = cache_folder(), sum(entry.bytes for entry in found)
    if as_json:
        document = {"folder": folder and str(folder), "cleared": clear, "bytes": total, "entries": described}
        console.emit_json(document)
        return
    for line in described:
        name = console.printable(line["bundle"] or Path(line["path"]).name)
        click.echo(f"{line['kind']:8} {console.size(line['bytes']):>9}  {line['last_used']}  {name}")
    where = "the cache folder" if folder is None else console.printable(str(folder))
    what = f"{console.size(total)} in {where}" + (f" for {bundle}" if bundle else "")
    if not found:
        click.echo(f"nothing is kept in {where}" + (f" for {bundle}" if bundle else ""))
    else:
        click.echo(f"removed: {what}" if clear else f"kept: {what}")


def _described(entry: CacheEntry) -> dict[str, Any]:
    from safecode_trt.runtime.backends.kept_graphs import kept_for

    used = datetime.fromtimestamp(entry.used, timezone.utc).isoformat(timespec="seconds")
    return {
        "kind": entry.kind,
        "bundle": kept_for(entry.path),
        "path": str(entry.path),
        "bytes": entry.bytes,
        "last_used": used,
    }
