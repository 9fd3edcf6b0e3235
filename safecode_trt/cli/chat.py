"""safecode-trt chat: a conversation about one picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import (
    FOLDER,
    PolicyChoice,
    build_policy,
    engine_options,
    explain_option,
    judge_options,
    policy_options,
    sampling_options,
)
from safecode_trt.cli.run import summary
from safecode_trt.config import MODES, RuntimeConfig, SamplingParams
from safecode_trt.errors import SafeCodeError

if TYPE_CHECKING:
    from safecode_trt.runtime import Engine, Message, Reply
    from safecode_trt.runtime.judges import Judge, JudgeConfig

__all__ = ["command"]

HELP = """/image PATH  start again with this picture
/mode MODE   plain, safecode or another that --help lists
/new         start again with the same picture
/quit        leave (so does the end of the input)"""


@dataclass(kw_only=True)
class Conversation:
    """What has been said, about which picture, and how the next reply is made."""

    engine: Engine
    sampling: SamplingParams
    choice: PolicyChoice
    judge: Judge | None
    explain: bool
    image: Path | None = None
    messages: list[Message] = field(default_factory=list)

    def reply(self, text: str) -> Reply | None:
        """Streams a reply to stdout; the turn is kept only if the reply was finished."""
        from safecode_trt.runtime import Message

        images = 1 if self.image and not self.messages else 0
        asked = Message(role="user", text=text, images=images)
        policy = build_policy(self.engine, self.choice)
        reply = None
        for chunk in self.engine.stream(
            [*self.messages, asked],
            image=self.image,
            policy=policy,
            sampling=self.sampling,
            judge=self.judge,
            explain=self.explain,
        ):
            click.echo(console.printable(chunk.text), nl=False)
            reply = chunk.reply
        if reply:
            self.messages += [asked, Message(role="assistant", text=reply.text)]
        return reply


@click.command("chat", short_help="Talk about a picture.")
@click.argument("bundle", type=FOLDER)
@click.option("--image", type=FOLDER, help="The picture to talk about.")
@policy_options
@judge_options
@explain_option
@sampling_options
@engine_options
def command(
    bundle: Path,
    image: Path | None,
    choice: PolicyChoice,
    judge: JudgeConfig,
    explain: bool,
    sampling: SamplingParams,
    runtime: RuntimeConfig,
) -> None:
    """Talk with BUNDLE about one picture; /help lists the commands.

    Ctrl-C stops a reply, and leaves when there is none.

    \b
    Example:
      safecode-trt chat build/demo-bundle --image examples/socket.png
    """
    from safecode_trt.runtime import Engine
    from safecode_trt.runtime.judges import make_judge

    who = make_judge(judge)
    with Engine.open(bundle, config=runtime) as engine:
        talk = Conversation(
            engine=engine, sampling=sampling, choice=choice, judge=who, explain=explain, image=image
        )
        while (line := _read_line()) is not None:
            if line in ("/quit", "/exit"):
                return
            if not line:
                continue
            try:
                _obey(talk, line) if line.startswith("/") else _answer(talk, line)
            except SafeCodeError as error:
                click.echo(f"error: {error}", err=True)


def _read_line() -> str | None:
    """The next line without its end, None at the end of the input."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        click.echo("error: the line is not UTF-8", err=True)
        return ""
    return line.strip() if line else None


def _answer(talk: Conversation, text: str) -> None:
    try:
        reply = talk.reply(text)
    except KeyboardInterrupt:
        click.echo("\n(stopped; the turn is forgotten)", err=True)
        return
    click.echo()
    if reply:
        console.note(summary(reply))


def _obey(talk: Conversation, line: str) -> None:
    verb, _, rest = line.partition(" ")
    rest = rest.strip()
    if verb == "/image" and rest:
        path = Path(rest).expanduser()
        if not path.is_file():
            click.echo(f"error: {path} is not a file", err=True)
            return
        talk.image, talk.messages = path, []
    elif verb == "/mode" and rest in MODES:
        talk.choice = replace(talk.choice, mode=rest)
    elif verb == "/new":
        talk.messages = []
    else:
        click.echo(HELP, err=True)
