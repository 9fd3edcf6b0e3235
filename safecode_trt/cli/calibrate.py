"""safecode-trt calibrate: make a bundle's own judge believe things as often as they are true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import DRAWING, PATH, as_json, engine_options
from safecode_trt.config import RuntimeConfig
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from safecode_trt.bundle import Bundle
    from safecode_trt.calibration import Calibration
    from safecode_trt.eval.calibrate import Outcome

__all__ = ["command"]


@click.command("calibrate", short_help="Fit the judge's temperature and threshold.")
@click.argument("bundle", type=PATH)
@click.option("--items", required=True, metavar="ITEMS", help="Labelled items to fit to.")
@click.option("--held-out", metavar="ITEMS", help="Others, on which the fit is measured and not made.")
@click.option("--plot", type=DRAWING, metavar="FILE", help="Draw the curves into FILE (.png, .svg, .pdf).")
@click.option("--dry-run", is_flag=True, help="Show what was found and leave BUNDLE as it is.")
@engine_options
@as_json
def command(
    bundle: Path,
    items: str,
    held_out: str | None,
    plot: Path | None,
    dry_run: bool,
    runtime: RuntimeConfig,
    as_json: bool,
) -> None:
    """Fit the temperature and threshold of BUNDLE's own judge, and keep them in BUNDLE.

    ITEMS is a file with one JSON object a line, whose picture is relative to the file's folder (or left out):

    \b
      {"picture": "a.png", "prompt": "can i touch it?", "unsafe": true}

    or a split of a benchmark's folder, as BENCHMARK:FOLDER:SPLIT.

    \b
    Example:
      safecode-trt calibrate build/demo-bundle --items items.jsonl
      safecode-trt calibrate build/demo-bundle --dry-run --plot curve.png \\
        --items demo-world:items:validation --held-out demo-world:items:test
    """
    from safecode_trt.engine import Engine
    from safecode_trt.eval.calibrate import calibrate, read_items

    _check_targets(bundle, plot, dry_run)
    fitted, unseen = read_items(items), read_items(held_out) if held_out else []
    with Engine.open(bundle, config=runtime, note=console.note) as engine, console.progress() as report:
        opened = engine.bundle
        outcome = calibrate(engine, fitted, unseen, report)
    if plot:
        _draw(outcome, plot)
    if not dry_run:
        _keep(opened, outcome.calibration)
    if as_json:
        console.emit_json({"bundle": str(bundle), "kept": not dry_run, **outcome.to_dict()})
    else:
        _show(outcome)
    console.note("nothing was written (--dry-run)" if dry_run else f"kept in {bundle}")


def _check_targets(bundle: Path, plot: Path | None, dry_run: bool) -> None:
    """Before the measurement: it would be a pity to find out only afterwards."""
    from safecode_trt.bundle import require_writable

    if plot:
        import matplotlib  # noqa: F401
    if not dry_run:
        require_writable(bundle, "pass --dry-run")


def _draw(outcome: Outcome, plot: Path) -> None:
    from safecode_trt.eval.reliability_plot import plot_reliability

    try:
        plot_reliability(list(outcome.curves().items()), plot)
    except OSError as error:
        raise ConfigError(f"{plot} cannot be written: {error}; choose another file", field="plot") from error
    console.note(f"drawn into {plot}")


def _keep(bundle: Bundle, found: Calibration) -> None:
    from safecode_trt.bundle import write_manifest

    safecode = replace(bundle.manifest.safecode, calibration=found)
    write_manifest(bundle.path, replace(bundle.manifest, safecode=safecode))


def _show(outcome: Outcome) -> None:
    output, found = console.stdout(), outcome.calibration
    output.print(_table(outcome))
    kept = "the judge is never wrong on these items, which says nothing of its temperature: it stays 1"
    for line in (
        *([kept] if outcome.unerring else []),
        f"temperature {found.temperature:.4g}, threshold {found.threshold:.4g}, fitted to {found.items} items, "
        f"{found.unsafe_items} of them unsafe",
        f"both verdict tokens together have a probability of at least {outcome.least_mass:.4g}",
    ):
        output.print(line, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    from rich.table import Table

    table = Table(box=None)
    table.add_column("")
    for name in ("calibration error", "verdicts right %"):
        table.add_column(name, justify="right")
    for name, curve in outcome.curves().items():
        table.add_row(name, f"{curve.calibration_error:.4f}", f"{100 * curve.accuracy:.1f}")
    return table
