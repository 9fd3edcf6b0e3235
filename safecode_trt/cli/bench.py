"""safecode-trt bench: how long the parts of a reply take on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import DRAWING, PATH, as_json, engine_options
from safecode_trt.cli.tables import shown
from safecode_trt.config import RuntimeConfig
from safecode_trt.errors import ConfigError

__all__ = ["command"]


def _counts(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected whole numbers between commas, got {value!r}") from error


@click.command("bench", short_help="Measure a bundle on this machine.")
@click.argument("bundle", type=PATH)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Rounds; more are steadier."
)
@click.option(
    "--tokens", callback=_counts, default="16,64,128", show_default=True, help="Lengths of the replies."
)
@click.option("--plot", type=DRAWING, metavar="FILE", help="Draw the figures into FILE (.png, .svg, .pdf).")
@engine_options
@as_json
def command(
    bundle: Path,
    repeats: int,
    tokens: tuple[int, ...],
    plot: Path | None,
    runtime: RuntimeConfig,
    as_json: bool,
) -> None:
    """Measure BUNDLE on this machine, best an idle one: what more rows cost, and what SafeCoDe does.

    \b
    Example:
      safecode-trt bench build/demo-bundle
      safecode-trt bench build/demo-bundle --tokens 32 --plot bench.png
    """
    from safecode_trt.bench.bench_report import bench_tables, facts
    from safecode_trt.bench.measure import bench_bundle

    if plot:
        # Before the measurement: it would be a pity to miss matplotlib only afterwards.
        from safecode_trt.bench.bench_plot import plot_bench
    with console.progress() as progress:
        result = bench_bundle(
            bundle, runtime=runtime, repeats=repeats, tokens=tokens, progress=progress, note=console.note
        )
    if as_json:
        console.emit_json(result.to_dict())
    else:
        output = console.stdout()
        for line in facts(result):
            output.print(console.printable(line), soft_wrap=True)
        for table in bench_tables(result):
            output.print()
            output.print(shown(table))
    if plot:
        try:
            plot_bench(result, plot)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{plot} cannot be written: {error}; choose another file", field="plot"
            ) from error
        console.note(f"drawn into {plot}")
