"""Options that several verbs share, gathered into the records of `config.py`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from safecode_trt.cli import console
from safecode_trt.config import BACKENDS, Backend, RuntimeConfig, SamplingParams
from safecode_trt.errors import PromptError

__all__ = [
    "DRAWING",
    "MADE_UP",
    "MODEL",
    "PATH",
    "add",
    "as_json",
    "engine_options",
    "gather",
    "no_kept_graphs",
    "note_idle",
    "read_prompt",
    "sampling_options",
    "typed",
]

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


class _AnyPath(click.Path):
    """A path that the verb will check, but not an empty one, which would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class _Drawing(_AnyPath):
    """A file to draw into, checked before the work that is to be drawn."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(super().convert(value, param, ctx))
        if path.suffix.lower() not in DRAWINGS:
            self.fail(f"{path} must end in {', '.join(DRAWINGS)}", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {path.parent} does not exist; make it, or choose another", param, ctx)
        return path


MADE_UP = "--backend null runs no model: answers, verdicts and figures are made up"
DRAWINGS = (".png", ".svg", ".pdf")
DRAWING = _Drawing(path_type=Path)
PATH = _AnyPath(path_type=Path)
MODEL = _AnyPath(path_type=str)  # a folder, or a name on the hub, which no Path keeps as it was typed
DEFAULT = SamplingParams()
no_kept_graphs = click.option(
    "--no-kept-graphs",
    "keep_graphs",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Neither take nor keep optimised graphs in the cache folder.",
)
ON_CPU_IN_PART = ("ort-cuda", "ort-tensorrt", "ort-trt-rtx")
"""Backends that may leave parts of a model to the CPU."""
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")

SAMPLING = (
    click.option(
        "--max-new-tokens",
        type=int,
        default=DEFAULT.max_new_tokens,
        show_default=True,
        help="The longest reply.",
    ),
    click.option(
        "--temperature", type=float, default=DEFAULT.temperature, show_default=True, help="0 is greedy."
    ),
    click.option(
        "--top-k",
        type=int,
        default=DEFAULT.top_k,
        show_default=True,
        help="Draw from so many tokens at most; 0 is off.",
    ),
    click.option(
        "--top-p",
        type=float,
        default=DEFAULT.top_p,
        show_default=True,
        help="Draw from the likeliest tokens with this share together.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=DEFAULT.min_p,
        show_default=True,
        help="Drop tokens below this share of the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=DEFAULT.repetition_penalty,
        show_default=True,
        help="Above 1 makes what was said less likely; 1 is off.",
    ),
    click.option("--seed", type=int, default=DEFAULT.seed, show_default=True, help="Same seed, same answer."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the reply before this text; repeatable."),
    click.option(
        "--deadline", "deadline_s", type=float, metavar="SECONDS", help="End the reply after this long."
    ),
)
ENGINE = (
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="ort-cpu",
        show_default=True,
        help="What executes the bundle: ONNX Runtime (ort-*), its TensorRT engines (trt), the best of them "
        "that works here (auto), or nothing (null): made-up numbers, for dry runs.",
    ),
    click.option(
        "--allow-cpu-fallback",
        is_flag=True,
        help="Let a GPU backend of ONNX Runtime leave parts of the model to the CPU.",
    ),
    click.option("--threads", type=int, default=0, show_default=True, help="0 takes all cores."),
    no_kept_graphs,
)


def gather(
    name: str, make: Callable[..., Any], options: Sequence[Decorator[Any]], *, shared: Sequence[str] = ()
) -> Callable[[F], F]:
    """Adds options to a command, which receives as `name` what `make` makes of them.

    `make` gets those values that it has parameters for; of these, the command gets only the `shared` ones too. A
    parameter has the name of the field that it sets, so that an error about the field names the option.
    """
    wanted = inspect.signature(make).parameters

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            values = {key: given[key] for key in wanted if key in given}
            rest = {key: value for key, value in given.items() if key not in values or key in shared}
            return command(**rest, **{name: make(**values)})

        return add(options, cast(F, wrapper))

    return decorate


def add(options: Sequence[Decorator[Any]], command: F) -> F:
    """Adds options to a command, in the order of its help."""
    for option in reversed(options):
        command = option(command)
    return command


def typed(names: Iterable[str]) -> list[str]:
    """Which of these parameters stand on the command line, as they are typed."""
    context, wanted = click.get_current_context(), set(names)
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in wanted
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def note_idle(why: str, names: Iterable[str], others: Sequence[str] = ()) -> None:
    """Notes which of these parameters were typed and change nothing `why`; `others` were found elsewhere."""
    if idle := [*others, *typed(names)]:
        console.note(f"no effect {why}: {', '.join(idle)}")


def _runtime(backend: Backend, threads: int, allow_cpu_fallback: bool, keep_graphs: bool) -> RuntimeConfig:
    runtime = RuntimeConfig(
        backend=backend, threads=threads, allow_cpu_fallback=allow_cpu_fallback, keep_graphs=keep_graphs
    )
    if backend == "null":
        console.note(MADE_UP)
    idle = [] if backend in (*ON_CPU_IN_PART, "auto") else ["allow_cpu_fallback"]
    note_idle(f"with --backend {backend}", [*idle, *([] if backend not in ("trt", "null") else ["threads"])])
    return runtime


sampling_options = gather("sampling", SamplingParams, SAMPLING)
"""Adds the sampling options; the command receives `sampling`."""
engine_options = gather("runtime", _runtime, ENGINE)
"""Adds --backend, --allow-cpu-fallback and --threads; the command receives `runtime`, a RuntimeConfig."""


def read_prompt(prompt: str) -> str:
    """The prompt itself, or stdin for `-`.

    Raises:
        PromptError: it is not UTF-8.
    """
    if prompt == "-":
        try:
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"stdin is not UTF-8 (byte {error.start}); save the prompt as UTF-8") from error
    if any(
        "\udc80" <= character <= "\udcff" for character in prompt
    ):  # how Python carries bytes it cannot read
        raise PromptError(
            "the prompt is not UTF-8; check the terminal's encoding, or pass it on stdin with -"
        )
    return prompt
