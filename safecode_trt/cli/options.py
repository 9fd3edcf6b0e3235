"""Options that several verbs share, gathered into the records of `config.py`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from safecode_trt.config import MODES, PAPER, Mode, RuntimeConfig, SamplingParams
from safecode_trt.errors import PromptError

if TYPE_CHECKING:
    from safecode_trt.bundle import Bundle
    from safecode_trt.policy.base import Policy

__all__ = [
    "FOLDER",
    "as_json",
    "build_policy",
    "engine_options",
    "policy_options",
    "read_prompt",
    "sampling_options",
]

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

FOLDER = click.Path(path_type=Path)
DEFAULT = SamplingParams()
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")

SAMPLING = (
    click.option("--max-new-tokens", type=int, default=DEFAULT.max_new_tokens, show_default=True),
    click.option(
        "--temperature", type=float, default=DEFAULT.temperature, show_default=True, help="0 is greedy."
    ),
    click.option("--top-k", type=int, default=DEFAULT.top_k, show_default=True, help="0 is off."),
    click.option("--top-p", type=float, default=DEFAULT.top_p, show_default=True),
    click.option("--min-p", type=float, default=DEFAULT.min_p, show_default=True),
    click.option("--repetition-penalty", type=float, default=DEFAULT.repetition_penalty, show_default=True),
    click.option("--seed", type=int, default=DEFAULT.seed, show_default=True, help="Same seed, same answer."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the reply before this text; repeatable."),
    click.option("--time-limit", type=float, metavar="SECONDS", help="End the reply after this long."),
)
POLICY = (
    click.option(
        "--mode", type=click.Choice(MODES), default="safecode", show_default=True, help="How to decode."
    ),
    click.option(
        "--reference",
        type=click.Choice(["noised", "cached"]),
        help="What the contrast compares with: this picture under noise, or the bundle's fixed noise.",
    ),
)
ENGINE = (
    click.option(
        "--backend", type=click.Choice(["ort-cpu", "trt", "null"]), default="ort-cpu", show_default=True
    ),
    click.option("--threads", type=int, default=0, show_default=True, help="0 takes all cores."),
)


def _apply(options: tuple[Decorator[Any], ...], function: F) -> F:
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

    return _apply(SAMPLING, cast(F, wrapper))


def policy_options(command: F) -> F:
    """Adds --mode and --reference; the command receives `mode` and `reference`."""
    return _apply(POLICY, command)


def engine_options(command: F) -> F:
    """Adds --backend and --threads; the command receives `runtime`, a RuntimeConfig."""

    @functools.wraps(command)
    def wrapper(*, backend: Any, threads: int, **options: Any) -> Any:
        return command(runtime=RuntimeConfig(backend=backend, threads=threads), **options)

    return _apply(ENGINE, cast(F, wrapper))


def build_policy(bundle: Bundle, mode: Mode, reference: Any = None) -> Policy:
    """The policy of a mode with this bundle's prompts and settings; `reference` overrides theirs."""
    from safecode_trt.policy import make_policy

    defaults = bundle.manifest.safecode
    settings = None
    if reference is not None and mode != "plain":
        settings = replace(PAPER if mode == "safecode-paper" else defaults.settings, reference=reference)
    return make_policy(mode, defaults, settings=settings)


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
