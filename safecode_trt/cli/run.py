"""safecode-trt run: one request, one reply, streamed as it is made."""

from __future__ import annotations

from pathlib import Path

import click

from safecode_trt.cli import console
from safecode_trt.cli.asking import Asking, asking_options, summary
from safecode_trt.cli.options import FOLDER, as_json, read_prompt

__all__ = ["command"]


@click.command("run", short_help="Ask one question.")
@click.argument("bundle", type=FOLDER)
@click.argument("prompt")
@click.option(
    "--image", "images", type=FOLDER, multiple=True, help="A picture to ask about; repeatable, in order."
)
@asking_options
@as_json
def command(
    bundle: Path,
    prompt: str,
    images: tuple[Path, ...],
    asking: Asking,
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
    with asking.open(bundle) as asker:
        record = asker.ask(as_messages(prompt, len(pictures)), pictures, show=not as_json)
    if as_json:
        console.emit_json(record.to_dict())
    else:
        console.note(summary(record))
