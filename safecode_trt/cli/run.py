"""safecode-trt run: one request, one reply, streamed as it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console
from safecode_trt.cli.asking import Asker, summary
from safecode_trt.cli.judge_options import judge_options
from safecode_trt.cli.options import (
    FOLDER,
    as_json,
    engine_options,
    explain_option,
    read_prompt,
    sampling_options,
)
from safecode_trt.cli.policy_options import PolicyChoice, policy_options
from safecode_trt.cli.recording import Recording, recording_options
from safecode_trt.config import RuntimeConfig, SamplingParams

if TYPE_CHECKING:
    from safecode_trt.runtime.judges import JudgeConfig

__all__ = ["command"]


@click.command("run", short_help="Ask one question.")
@click.argument("bundle", type=FOLDER)
@click.argument("prompt")
@click.option(
    "--image", "images", type=FOLDER, multiple=True, help="A picture to ask about; repeatable, in order."
)
@policy_options
@judge_options
@explain_option
@sampling_options
@engine_options
@recording_options
@as_json
def command(
    bundle: Path,
    prompt: str,
    images: tuple[Path, ...],
    choice: PolicyChoice,
    judge: JudgeConfig,
    explain: bool,
    sampling: SamplingParams,
    runtime: RuntimeConfig,
    recording: Recording,
    as_json: bool,
) -> None:
    """Ask BUNDLE one question; PROMPT - reads it from stdin.

    --json prints what --trace writes.

    \b
    Example:
      safecode-trt run build/demo-bundle --image photo.png "can i touch it?"
      safecode-trt run build/demo-bundle --image photo.png - < question.txt
    """
    from safecode_trt.runtime import Engine
    from safecode_trt.runtime.judges import make_judge
    from safecode_trt.runtime.picture_file import read_picture
    from safecode_trt.runtime.request import as_messages

    prompt, who = read_prompt(prompt), make_judge(judge)
    pictures = [read_picture(path) for path in images]
    with recording.open() as recorder, Engine.open(bundle, config=runtime, note=console.note) as engine:
        asker = Asker(
            engine=engine,
            recorder=recorder,
            sampling=sampling,
            choice=choice,
            judge=who,
            explain=explain,
        )
        record = asker.ask(as_messages(prompt, len(pictures)), pictures, show=not as_json)
    if as_json:
        console.emit_json(record.to_dict())
    else:
        console.note(summary(record))
