"""safecode-trt verify: is the bundle whole, and does it still compute what the checkpoint computes?"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt import remedies
from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json
from safecode_trt.errors import BundleError
from safecode_trt.parity_report import Parity
from safecode_trt.progress import Progress
from safecode_trt.records import to_dict

if TYPE_CHECKING:
    from safecode_trt.bundle import Bundle

__all__ = ["command"]


@click.command("verify", short_help="Check a bundle's files and numbers.")
@click.argument("bundle", type=PATH)
@click.option("--against", type=PATH, metavar="CHECKPOINT", help="Compare with this checkpoint again.")
@as_json
def command(bundle: Path, against: Path | None, as_json: bool) -> None:
    """Check every file of BUNDLE against its size and SHA-256.

    \b
    Example:
      safecode-trt verify build/demo-bundle
      safecode-trt verify build/demo-bundle --against models/demo
    """
    from safecode_trt.bundle import Bundle

    opened = Bundle.open(bundle, check_hashes=True)
    parity = opened.manifest.parity
    if against:
        with console.progress() as progress:
            parity = _compare(opened, against, progress)
    files = opened.manifest.files
    if as_json:
        console.emit_json({"bundle": str(bundle), "files": len(files), "parity": to_dict(parity)})
    else:
        total = console.size(sum(file.bytes for file in files.values()))
        click.echo(f"{bundle}: {len(files)} files as they were written, {total}")
        click.echo(describe(parity))


def _compare(bundle: Bundle, checkpoint: Path, progress: Progress) -> Parity:
    from safecode_trt.config import RuntimeConfig
    from safecode_trt.export.checkpoint import Checkpoint
    from safecode_trt.export.package import settings_files
    from safecode_trt.export.parity import verify_session
    from safecode_trt.models import load_spec
    from safecode_trt.runtime.backends import open_session

    expected = bundle.manifest.source_sha256
    found = Checkpoint(checkpoint).sha256(settings_files(checkpoint, load_spec(checkpoint)))
    if found != expected:
        raise BundleError(
            f"{bundle.path} was made of weights and settings with SHA-256 {expected[:16]}..., "
            f"those of {checkpoint} have {found[:16]}...",
            fix=remedies.export(bundle.path, checkpoint=checkpoint),
        )
    with closing(open_session(bundle, RuntimeConfig(keep_graphs=False))) as session:
        return verify_session(session, bundle, checkpoint, progress)


def describe(parity: Parity | None) -> str:
    """The parity report in one line."""
    if parity is None:
        return "parity: not measured (exported with --no-verify)"
    return (
        f"parity with transformers over {parity.probes} probes: "
        f"greedy tokens {parity.greedy_agreement:.1%}, top-1 {parity.top1_agreement:.1%} "
        f"({parity.top1_within_noise:.1%} but for near ties), noise of the logits {parity.logit_noise:.2%}, "
        f"{parity.largest_differences}"
    )
