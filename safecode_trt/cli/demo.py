"""safecode-trt demo: eight requests about eight scenes, with plain and with SafeCoDe decoding."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt import __version__, atomic
from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json, engine_options
from safecode_trt.config import RuntimeConfig, SamplingParams

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from safecode_trt.eval.demo_scenes import Answered

__all__ = ["command"]

SCENES = Path(__file__).parents[1] / "models" / "demo" / "scenes"
SAMPLING = SamplingParams(max_new_tokens=32)


@click.command("demo", short_help="Eight scenes, answered in both modes.")
@click.argument("bundle", type=PATH, default=Path("build/demo-bundle"))
@click.option(
    "--report",
    type=PATH,
    default=Path("build/demo-report.html"),
    show_default=True,
    help="Where the page with pictures and charts goes.",
)
@engine_options
@as_json
def command(bundle: Path, report: Path, runtime: RuntimeConfig, as_json: bool) -> None:
    """Ask the demo model in BUNDLE eight requests about eight scenes that it was not trained on.

    \b
    Example:
      safecode-trt demo build/demo-bundle
    """
    from safecode_trt.engine import Engine
    from safecode_trt.errors import BundleError, ConfigError
    from safecode_trt.eval.demo_report import demo_report
    from safecode_trt.eval.demo_scenes import answer_scenes

    if not bundle.is_dir():
        raise BundleError(f"{bundle} is not a folder; expected the demo bundle", fix="make demo")
    with Engine.open(bundle, config=runtime, note=console.note) as engine:
        with console.progress() as progress:
            answered = answer_scenes(
                engine,
                SCENES,
                sampling=SAMPLING,
                progress=progress,
            )
        tokenizer = engine.model.prompts.tokenizer
        page = demo_report(
            answered,
            engine.bundle.manifest,
            token_text=lambda token: tokenizer.decode([token], skip_special_tokens=False),
            version=__version__,
        )
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(report, page)
    except OSError as error:
        raise ConfigError(
            f"{report} cannot be written: {error.strerror or error}; choose another file", field="report"
        ) from error
    if as_json:
        console.emit_json([item.to_dict() for item in answered])
        return
    console.stdout().print(_table(answered))
    click.echo(f"\nwith pictures and charts: {report}")
    example = Path("examples/socket.png")
    picture = example if example.is_file() else SCENES / answered[0].scene.picture
    question = '"can i pour water on it?"' if example.is_file() else f'"{answered[0].scene.request}"'
    click.echo("ask your own:")
    click.echo(
        f"  {_program()} run {shlex.quote(str(bundle))} --image {shlex.quote(str(picture))} {question}"
    )


def _program() -> str:
    """How this program was reached: its name if it is on the PATH, else its path as typed."""
    import shutil
    import sys

    return "safecode-trt" if shutil.which("safecode-trt") else shlex.quote(sys.argv[0])


def _table(answered: list[Answered]) -> Table:
    from rich.table import Table

    caption = (
        "x: not what the scene calls for; milliseconds to the first token and for each later one, "
        "plain above SafeCoDe"
    )
    table = Table(show_lines=True, caption=caption, caption_justify="left")
    for name in ("picture", "request", "plain", "verdict", "SafeCoDe"):
        table.add_column(name, overflow="fold", style="bold" if name == "request" else None)
    table.add_column("ms first / each", justify="right")
    for item in answered:
        replies = (item.plain, item.safecode)
        verdict = item.safecode.verdict
        word = "none" if verdict is None else "unsafe" if verdict.unsafe else "safe"
        table.add_row(
            item.scene.caption.removesuffix("."),
            item.scene.request,
            _marked(item.plain.text, item.plain_right),
            word if verdict is None else f"{word}\n{verdict.p_unsafe:.3f}",
            _marked(item.safecode.text, item.safecode_right),
            "\n".join(
                f"{r.timings.first_token_s * 1e3:.0f} / {r.timings.per_token_s * 1e3:.1f}" for r in replies
            ),
        )
    return table


def _marked(text: str, right: bool) -> Text:
    """An answer in red if the scene calls for the opposite; the mark says it without colour too."""
    from rich.text import Text

    return Text(
        console.printable(text) if right else f"x {console.printable(text)}", style="" if right else "red"
    )
