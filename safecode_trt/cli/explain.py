"""safecode-trt explain: why a recorded reply became what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import DRAWING, PATH, as_json, note_idle
from safecode_trt.cli.reply_session import summary
from safecode_trt.errors import ConfigError, TraceError

if TYPE_CHECKING:
    from rich.table import Table

    from safecode_trt.policy.base import Verdict
    from safecode_trt.trace.record_file import BadLine
    from safecode_trt.trace.reply_record import RecordedStep, ReplyRecord

__all__ = ["command"]

SCALE = 50
TOKEN = 20


@click.command("explain", short_help="Show why a reply became what it is.")
@click.argument("trace", type=PATH)
@click.option("--reply", type=click.IntRange(min=1), help="Which one; the last by default.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=6, show_default=True, help="At most so many steps."
)
@click.option("--output", type=DRAWING, metavar="FILE", help="Draw it, too (.png, .svg or .pdf).")
@as_json
def command(trace: Path, reply: int | None, steps: int, output: Path | None, as_json: bool) -> None:
    """Show a reply of TRACE, which `run --trace` or `chat --trace` has written.

    For the leading tokens of every steered step: their logits on the picture and on the reference, after the
    contrast, what the verdict added, and the end. In brackets are the ranks among the tokens shown; a star marks
    the token that was chosen.

    \b
    Example:
      safecode-trt run build/demo-bundle --trace t.jsonl "can i eat it?"
      safecode-trt explain t.jsonl
      safecode-trt explain t.jsonl --reply 1 --output picture.png
    """
    from safecode_trt.trace.reading import reading

    if output:
        from safecode_trt.trace.reply_plot import plot_reply  # before anything is shown, it may be missing
    record, number, count = _find(trace, reply)
    if as_json and not output:
        note_idle("with --json and no --output", ["steps"])
    if output:
        try:
            plot_reply(record, output, steps=steps)
        except OSError as error:
            raise ConfigError(
                f"{output} cannot be written: {error.strerror or error}; choose another file", field="output"
            ) from error
        console.note(f"picture: {output}")
    if as_json:
        console.emit_json({"reply": number, "reading": reading(record), **record.to_dict()})
        return
    _print(record, steps, f"{number} of {count}")


def _find(trace: Path, wanted: int | None) -> tuple[ReplyRecord, int, int]:
    """The wanted reply, its number and how many there are; lines that are none are mentioned."""
    from safecode_trt.trace.record_file import BadLine, read_records

    found, count = None, 0
    bad: list[BadLine] = []
    for each in read_records(trace):
        if isinstance(each, BadLine):
            bad.append(each)
            continue
        count += 1
        if wanted is None or count == wanted:
            found = each
    if not count:
        why = f"line {bad[0].number} {bad[0].reason}" if bad else "it is empty"
        raise TraceError(f"{trace} holds no reply: {why}")
    for line in bad[:3]:
        console.note(f"{trace}: line {line.number} {console.printable(line.reason)}; left out")
    if len(bad) > 3:
        console.note(f"{trace}: {len(bad) - 3} more lines left out")
    if found is None:
        raise ConfigError(f"must be at most {count}, the replies of {trace}, got {wanted}", field="reply")
    return found, wanted or count, count


def _print(record: ReplyRecord, most: int, number: str) -> None:
    from safecode_trt.trace.reading import step_reading

    output = console.stdout()
    output.print(_facts(record, number))
    if record.verdict:
        click.echo(f"\n{scale(record.verdict)}")
    for step in record.steps[:most]:
        said = f": {step_reading(step, record.verdict)}" if len(record.steps) > 1 else ""
        click.echo()
        output.print(f"step {step.step + 1}{said}")
        output.print(_step_table(step))
    if (rest := len(record.steps) - most) > 0:
        click.echo(f"\n{rest} more steered steps: --steps {len(record.steps)}")


def _facts(record: ReplyRecord, number: str) -> Table:
    from rich.table import Table

    from safecode_trt.trace.reading import reading

    asked = record.messages[-1].text if record.messages else ""
    facts = {
        "reply": f"{number}, {record.time}, {record.bundle}",
        "request": asked
        + (f"  (after {len(record.messages) - 1} messages)" if len(record.messages) > 1 else ""),
        "pictures": ", ".join(f"{digest[:12]}..." for digest in record.image_sha256) or "none",
        "answer": record.text,
        "why": reading(record),
        "how": summary(record),
        "mode": ", ".join([record.mode, *(f"{key} {value}" for key, value in record.settings.items())]),
        "sampling": f"temperature {record.sampling.temperature:g}, seed {record.sampling.seed}",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, console.printable(value))
    return table


def scale(verdict: Verdict) -> str:
    """The verdict between 0 and 1, with its threshold."""
    from safecode_trt.trace.reading import judged

    line = ["-"] * (SCALE + 1)
    line[round(verdict.threshold * SCALE)] = "|"
    line[round(verdict.p_unsafe * SCALE)] = "*"
    figures = f"p_unsafe {verdict.p_unsafe:.3f} *, threshold {verdict.threshold:.2f} |"
    source = console.printable(verdict.source)
    return f"verdict: {judged(verdict)}, {figures}, from {source}\n  safe 0 [{''.join(line)}] 1 unsafe"


def _step_table(step: RecordedStep) -> Table:
    from rich.table import Table

    from safecode_trt.trace.reading import STAGES, ranked, shown_text

    seen = ranked(step)
    stages = [stage for stage in STAGES if any(stage in each.logits for each in seen)]
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    table.add_column("token", no_wrap=True)
    for stage in stages:
        if stage == "final":
            table.add_column("verdict", justify="right")
        table.add_column(stage, justify="right", no_wrap=True)
    for each in seen:
        row = [f"{each.logits[s]:.2f} ({each.ranks[s]})" if s in each.logits else "" for s in stages]
        shift = f"{each.candidate.shift:+.2f}" if each.candidate.shift else ""
        table.add_row(
            "*" if each.chosen else "",
            shown_text(each.candidate.text, TOKEN),
            *row[:-1],
            shift,
            row[-1],
            style="bold" if each.chosen else "",
        )
    return table
