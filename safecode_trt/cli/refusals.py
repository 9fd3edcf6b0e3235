"""safecode-trt refusals: which tokens stand for a refusal, and which of them ordinary answers begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json, engine_options
from safecode_trt.config import RuntimeConfig
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from safecode_trt.manifest import RefusalFilter, SafeCodeDefaults

__all__ = ["command"]

SHARE = 0.02


@click.command("refusals", short_help="Find the tokens that only refusals begin with.")
@click.argument("bundle", type=PATH)
@click.option("--corpus", type=PATH, metavar="FILE", help="Other harmless requests, one a line.")
@click.option("--image", "images", type=PATH, multiple=True, help="Ask about this picture; repeatable.")
@click.option("--refusals", type=PATH, metavar="FILE", help="Other refusal phrases, one a line.")
@click.option(
    "--share",
    type=float,
    default=SHARE,
    show_default=True,
    help="Drop tokens that begin more than this share of the harmless answers.",
)
@click.option("--write", is_flag=True, help="Store the result in the bundle.")
@engine_options
@as_json
def command(
    bundle: Path,
    corpus: Path | None,
    images: tuple[Path, ...],
    refusals: Path | None,
    share: float,
    write: bool,
    runtime: RuntimeConfig,
    as_json: bool,
) -> None:
    """Ask BUNDLE harmless requests and drop the refusal tokens that its answers begin with.

    A verdict that lowers or raises such a token would move ordinary answers too. Replies that refuse are left out.

    \b
    Example:
      safecode-trt refusals build/demo-bundle --image examples/socket.png --write
    """
    from safecode_trt.bundle import require_writable, write_manifest
    from safecode_trt.engine import Engine
    from safecode_trt.eval.harmless import HARMLESS, filter_refusals, harmless_answers, read_requests
    from safecode_trt.records import to_dict
    from safecode_trt.runtime.refusals import read_phrases, with_refusals

    if not 0 <= share < 1:
        raise ConfigError(f"must be at least 0 and below 1, got {share:g}", field="share")
    if write:
        require_writable(bundle, "leave out --write")
    requests = read_requests(corpus) if corpus else HARMLESS
    with Engine.open(bundle, config=runtime, note=console.note) as engine, console.progress() as progress:
        manifest = engine.bundle.manifest
        defaults = manifest.safecode
        if refusals:
            phrases = read_phrases(refusals)
            defaults = with_refusals(defaults, phrases, engine.model.prompts, manifest.geometry.vocab_size)
        replies = harmless_answers(engine, requests, images, progress=progress)
        found = filter_refusals(defaults, replies, share)
        tokenizer = engine.model.prompts.tokenizer
    if write:
        write_manifest(bundle, replace(manifest, safecode=found))
    if as_json:
        names = ("refusal_phrases", "refusal_token_ids", "refusal_filter")
        console.emit_json({name: to_dict(getattr(found, name)) for name in names})
    else:
        _print(found, tokenizer)
    if not write:
        console.note("not stored; add --write to keep it in the bundle")


def _print(found: SafeCodeDefaults, tokenizer: Tokenizer) -> None:
    from rich.table import Table

    filtered = cast("RefusalFilter", found.refusal_filter)
    counts = dict(zip(filtered.dropped, filtered.found, strict=True))
    table = Table("id", "token", "", caption=f"{filtered.answers} harmless answers", caption_justify="left")
    for token in found.refusal_token_ids:
        word = console.printable(repr(str(tokenizer.decode([token], skip_special_tokens=False))))
        table.add_row(str(token), word, f"dropped, begins {counts[token]}" if token in counts else "kept")
    console.stdout().print(table)
