"""safecode-trt run: one request, one reply, streamed as it is made."""

from __future__ import annotations

from pathlib import Path

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json, read_prompt
from safecode_trt.cli.reply_session import ReplyOptions, reply_options, summary

__all__ = ["command"]


@click.command("run", short_help="Ask one question.")
@click.argument("bundle", type=PATH)
@click.argument("prompt")
@click.option(
    "--image", "images", type=PATH, multiple=True, help="A picture to ask about; repeatable, in order."
)
@reply_options
@as_json
def command(
    bundle: Path,
    prompt: str,
    images: tuple[Path, ...],
    options: ReplyOptions,
    as_json: bool,
) -> None:
    """Ask BUNDLE one question; PROMPT - reads it from stdin.

    --json prints what --trace writes.

    \b
    Example:
      safecode-trt run build/demo-bundle --image photo.png "can i touch it?"
      safecode-trt run build/demo-bundle --image photo.png - < question.txt
    """
    from safecode_trt.runtime.picture_file import read_picture
    from safecode_trt.runtime.request import as_messages

    prompt = read_prompt(prompt)
    pictures = [read_picture(path) for path in images]
    with options.open(bundle) as session:
        record = session.ask(as_messages(prompt, len(pictures)), pictures, show=not as_json)
    if as_json:
        console.emit_json(record.to_dict())
    else:
        console.note(summary(record))
