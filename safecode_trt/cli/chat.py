"""safecode-trt chat: a conversation about pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console, one_line
from safecode_trt.cli.options import PATH
from safecode_trt.cli.reply_session import ReplyOptions, ReplySession, reply_options, summary
from safecode_trt.config import MODES
from safecode_trt.errors import ConfigError, SafeCodeError

if TYPE_CHECKING:
    from safecode_trt.runtime import Message
    from safecode_trt.runtime.picture_file import PictureFile
    from safecode_trt.trace.reply_record import ReplyRecord

__all__ = ["command"]

HELP = """/image PATH  show a picture with the next message, in addition to those before
/mode MODE   plain, safecode or another that --help lists
/new         start again with the same pictures
/clear       start again without pictures
/quit        leave (so does the end of the input)"""


@dataclass(kw_only=True)
class Conversation:
    """What has been said and shown: the messages show the first pictures, the next message the rest."""

    session: ReplySession
    pictures: list[PictureFile] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def show(self, path: Path) -> None:
        """Adds a picture to the next message.

        Raises:
            PictureError: it cannot be used.
            PromptError: the model takes no further picture.
        """
        from safecode_trt.runtime.picture_file import read_picture

        self.session.engine.model.spec.require_pictures(len(self.pictures) + 1)
        self.pictures.append(read_picture(path))

    def decode(self, mode: str) -> None:
        """Answers in another mode from now on, by its own stages.

        Raises:
            ConfigError: there is no such mode, or it does not go with the judge.
        """
        if mode not in MODES:
            raise ConfigError(f"must be one of {', '.join(MODES)}, got {mode!r}", field="mode")
        replaced = self.session.choice.stages is not None
        self.session.choose(replace(self.session.choice, mode=mode, stages=None))
        console.note(f"mode {mode}, without the stages of --policy" if replaced else f"mode {mode}")

    def reply(self, text: str) -> ReplyRecord:
        """Streams a reply to stdout; the turn is kept only if the reply was finished."""
        from safecode_trt.runtime import Message

        shown = sum(message.images for message in self.messages)
        asked = Message(role="user", text=text, images=len(self.pictures) - shown)
        record = self.session.ask([*self.messages, asked], self.pictures, show=True)
        self.messages += [asked, Message(role="assistant", text=record.text)]
        return record


@click.command("chat", short_help="Talk about pictures.")
@click.argument("bundle", type=PATH)
@click.option("--image", "images", type=PATH, multiple=True, help="A picture to talk about; repeatable.")
@reply_options
def command(bundle: Path, images: tuple[Path, ...], options: ReplyOptions) -> None:
    """Talk with BUNDLE about pictures; /help lists the commands.

    Ctrl-C stops a reply, and leaves when there is none.

    \b
    Example:
      safecode-trt chat build/demo-bundle --image examples/socket.png
    """
    with options.open(bundle) as session:
        talk = Conversation(session=session)
        for path in images:
            talk.show(path)
        while (line := _read_line()) is not None:
            if line in ("/quit", "/exit"):
                return
            if not line:
                continue
            try:
                _obey(talk, line) if line.startswith("/") else _answer(talk, line)
            except SafeCodeError as error:
                click.echo(f"error: {console.printable(one_line(error, {}))}", err=True)


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
        record = talk.reply(text)
    except KeyboardInterrupt:
        click.echo("\n(stopped; the turn is forgotten)", err=True)
        return
    console.note(summary(record))


def _obey(talk: Conversation, line: str) -> None:
    verb, _, rest = line.partition(" ")
    rest = rest.strip()
    if verb == "/image" and rest:
        talk.show(Path(rest).expanduser())
    elif verb == "/mode":
        talk.decode(rest)
    elif verb == "/new":
        talk.messages = []
    elif verb == "/clear":
        talk.messages, talk.pictures = [], []
    else:
        click.echo(HELP, err=True)
