"""Options that several verbs share, gathered into the records of `config.py`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from safecode_trt.cli import console
from safecode_trt.config import BACKENDS, RuntimeConfig, SamplingParams
from safecode_trt.errors import PromptError

__all__ = [
    "DRAWING",
    "MADE_UP",
    "MODEL",
    "PATH",
    "apply",
    "as_json",
    "engine_options",
    "no_kept_graphs",
    "read_prompt",
    "sampling_options",
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
    is_flag=True,
    help="Neither take nor keep optimised graphs in the cache folder.",
)
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
    click.option("--time-limit", type=float, metavar="SECONDS", help="End the reply after this long."),
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


def apply(options: tuple[Decorator[Any], ...], function: F) -> F:
    """Adds options to a command, in the order of its help."""
    for option in reversed(options):
        function = option(function)
    return function


def sampling_options(command: F) -> F:
    """Adds the sampling options; the command receives `sampling`."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> Any:
        names = SamplingParams.__dataclass_fields__
        sampling = SamplingParams(**{name: options.pop(name) for name in names if name in options})
        return command(sampling=sampling, **options)

    return apply(SAMPLING, cast(F, wrapper))


def engine_options(command: F) -> F:
    """Adds the options of `ENGINE`; the command receives `runtime`, a RuntimeConfig."""

    @functools.wraps(command)
    def wrapper(
        *, backend: Any, threads: int, allow_cpu_fallback: bool, no_kept_graphs: bool, **options: Any
    ) -> Any:
        runtime = RuntimeConfig(
            backend=backend,
            threads=threads,
            allow_cpu_fallback=allow_cpu_fallback,
            keep_graphs=not no_kept_graphs,
        )
        if backend == "null":
            console.note(MADE_UP)
        return command(runtime=runtime, **options)

    return apply(ENGINE, cast(F, wrapper))


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
