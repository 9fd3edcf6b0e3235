"""The program `safecode-trt`: one file per verb, loaded when the verb is used.

The answer goes to stdout, everything else to stderr. A failure is one line and an exit code (1 failed, 2 usage,
130 interrupted); a traceback is shown with --debug only.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from safecode_trt import __version__, interrupt
from safecode_trt.errors import ConfigError, SafeCodeError

__all__ = ["VERBS", "main", "one_line", "program"]

VERBS = (
    "demo",
    "export",
    "build",
    "verify",
    "inspect",
    "refusals",
    "calibrate",
    "run",
    "chat",
    "explain",
    "bench",
    "eval",
    "doctor",
    "cache",
    "upgrade",
)
FAILED, USAGE, INTERRUPTED = 1, 2, 130
MISSING_EXTRAS = {
    "torch": "export",
    "transformers": "export",
    "huggingface_hub": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "matplotlib": "eval",
    "ray": "ray",
}


class Program(click.Group):
    """A group whose commands are the files of this folder, and whose failures are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            if near := difflib.get_close_matches(cmd_name, VERBS, n=1):
                ctx.fail(f"No such command {cmd_name!r}; did you mean {near[0]}?")
            return None
        command: click.Command = importlib.import_module(f"safecode_trt.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"error: {one_line(error, self._options(ctx))}", err=True)
            ctx.exit(USAGE if isinstance(error, ConfigError) else FAILED)

    def _options(self, ctx: click.Context) -> Mapping[str, str]:
        """The options and arguments of the verb that runs, by the names of the settings that they set."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        parameters = [] if command is None else command.params
        return {str(each.name): _spelled(each) for each in parameters}

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "safecode-trt"
            click.echo(f"error: {_usage(error)} (see `{where} --help`)", err=True)
            sys.exit(USAGE)
        except click.ClickException as error:
            click.echo(f"error: {error.format_message()}", err=True)
            sys.exit(FAILED)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code or 0)


def _usage(error: click.UsageError) -> str:
    """What was wrong with the words on the command line, and what is often meant by them."""
    message = error.format_message().removesuffix(".")
    ours = {name for option in program.params for name in option.opts}
    if isinstance(error, click.NoSuchOption) and error.option_name in ours and error.ctx:
        before = f"safecode-trt {error.option_name} {error.ctx.info_name} ..."
        return f"{error.option_name} stands before the verb: {before}"
    if message.startswith("Got unexpected extra argument"):
        return f"{message}; an argument with spaces needs quotes"
    return message


def _spelled(parameter: click.Parameter) -> str:
    """A parameter as it is typed."""
    return parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name).upper()


def one_line(error: Exception, options: Mapping[str, str]) -> str:
    """A failure as the user reads it; `options` are the options by the names of the settings that they set."""
    if isinstance(error, SafeCodeError):
        named = error.field if error.field is None or error.where else options.get(error.field, error.field)
        return " ".join(error.shown(named).split())
    if isinstance(error, ModuleNotFoundError) and (
        extra := MISSING_EXTRAS.get(str(error.name).split(".")[0])
    ):
        return f"{error.name} is not installed; this verb needs `pip install 'safecode-trt[{extra}]'`"
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text} (`safecode-trt --debug ...` shows where)"


@click.command(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="safecode-trt")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notes on stderr.")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.pass_context
def program(ctx: click.Context, quiet: bool, debug: bool) -> None:
    """Vision-language models on the device, with safety-aware decoding.

    \b
    Example:
      safecode-trt export --model models/demo --output build/demo-bundle
      safecode-trt run build/demo-bundle --image photo.png "can I use this?"
    """
    interrupt.raise_between_imports()
    ctx.obj = quiet
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


def main() -> NoReturn:
    """The entry point of the console script."""
    program.main(prog_name="safecode-trt")
