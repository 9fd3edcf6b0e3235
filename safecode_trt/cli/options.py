"""Options that several verbs share, gathered into the records of `config.py`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from safecode_trt.config import (
    BACKENDS,
    MODES,
    STAGES,
    Mode,
    RuntimeConfig,
    SafeCodeConfig,
    SamplingParams,
    StageName,
)
from safecode_trt.errors import PromptError

if TYPE_CHECKING:
    from safecode_trt.policy.base import Policy
    from safecode_trt.runtime import Engine

__all__ = [
    "DRAWING",
    "FOLDER",
    "PolicyChoice",
    "as_json",
    "build_policy",
    "engine_options",
    "explain_option",
    "judge_options",
    "policy_options",
    "policy_settings",
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


DRAWINGS = (".png", ".svg", ".pdf")
DRAWING = _Drawing(path_type=Path)
FOLDER = _AnyPath(path_type=Path)
DEFAULT = SamplingParams()
explain_option = click.option(
    "--explain-refusals/--no-explain-refusals",
    "explain",
    default=False,
    show_default=True,
    help="Say behind a refusal what in the scene is unsafe, and what else could be asked.",
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
POLICY = (
    click.option(
        "--mode",
        type=click.Choice(MODES),
        default="safecode",
        show_default=True,
        metavar="MODE",
        help=f"How to decode: {', '.join(MODES)}.",
    ),
    click.option(
        "--policy",
        "stages",
        metavar="STAGES",
        help=f"The stages to run, in order, instead of the mode's; of {', '.join(STAGES)}, separated by commas.",
    ),
    click.option(
        "--reference",
        type=click.Choice(["noised", "cached", "absent"]),
        help="What the contrast compares with: this picture under noise, the bundle's fixed noise, or no picture.",
    ),
    click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one of the mode's settings, such as alpha=0 or release.force_prefix=false; repeatable.",
    ),
    click.option("--prompts", type=FOLDER, metavar="FILE", help="JSON with other prompts than the bundle's."),
    click.option("--refusals", type=FOLDER, metavar="FILE", help="Other refusal phrases, one a line."),
)
JUDGE = (
    click.option(
        "--judge",
        "judges",
        multiple=True,
        default=("self",),
        metavar="WHO",
        show_default=True,
        help="Who gives the verdict: self, self-caption, constant:P, file:PATH, endpoint:URL#MODEL or "
        "endpoint-caption:URL#MODEL. Several are asked together.",
    ),
    click.option(
        "--judge-rule",
        "rule",
        type=click.Choice(["max", "mean", "majority"]),
        default="max",
        show_default=True,
        help="What several judges say together.",
    ),
    click.option(
        "--judge-threshold",
        "threshold",
        type=float,
        metavar="P",
        help="Unsafe from here on.  [default: 0.5; that of self is in the bundle]",
    ),
    click.option(
        "--judge-timeout",
        "timeout",
        type=float,
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="For an endpoint's answer with all retries.",
    ),
    click.option(
        "--judge-key",
        "key_variable",
        default="SAFECODE_API_KEY",
        show_default=True,
        metavar="VARIABLE",
        help="The environment variable with an endpoint's key.",
    ),
    click.option(
        "--judge-cache", "cache", metavar="FOLDER", help="Keep an endpoint's answers here, and use them."
    ),
)
ENGINE = (
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="ort-cpu",
        show_default=True,
        help="What executes the bundle: ONNX Runtime (ort-*), its TensorRT engines (trt), nothing (null), "
        "or the best of them that works here (auto).",
    ),
    click.option(
        "--allow-cpu-fallback",
        is_flag=True,
        help="Let a GPU backend of ONNX Runtime leave parts of the model to the CPU.",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """How to decode, as the options say: the mode, and what is changed in it."""

    mode: Mode
    stages: tuple[StageName, ...] | None = None
    changes: tuple[str, ...] = ()
    prompts: Path | None = None
    refusals: Path | None = None


def policy_options(command: F) -> F:
    """Adds --mode and what changes it; the command receives `choice`, a PolicyChoice."""

    @functools.wraps(command)
    def wrapper(
        *,
        mode: Mode,
        stages: str | None,
        reference: str | None,
        changes: tuple[str, ...],
        prompts: Path | None,
        refusals: Path | None,
        **options: Any,
    ) -> Any:
        if reference is not None:
            changes = (f"reference={reference}", *changes)
        named = None if stages is None else tuple(name.strip() for name in stages.split(","))
        choice = PolicyChoice(
            mode=mode,
            stages=cast("tuple[StageName, ...] | None", named),
            changes=changes,
            prompts=prompts,
            refusals=refusals,
        )
        return command(choice=choice, **options)

    return _apply(POLICY, cast(F, wrapper))


def judge_options(command: F) -> F:
    """Adds --judge and what belongs to it; the command receives `judge`, a JudgeConfig that has been checked."""

    @functools.wraps(command)
    def wrapper(
        *,
        judges: tuple[str, ...],
        rule: Any,
        threshold: float | None,
        timeout: float,
        key_variable: str,
        cache: str | None,
        **options: Any,
    ) -> Any:
        from safecode_trt.runtime.judges import JudgeConfig

        judge = JudgeConfig(
            judges=judges,
            rule=rule,
            threshold=threshold,
            timeout=timeout,
            key_variable=key_variable,
            cache=cache,
        )
        return command(judge=judge, **options)

    return _apply(JUDGE, cast(F, wrapper))


def engine_options(command: F) -> F:
    """Adds --backend, --allow-cpu-fallback and --threads; the command receives `runtime`, a RuntimeConfig."""

    @functools.wraps(command)
    def wrapper(*, backend: Any, threads: int, allow_cpu_fallback: bool, **options: Any) -> Any:
        runtime = RuntimeConfig(backend=backend, threads=threads, allow_cpu_fallback=allow_cpu_fallback)
        return command(runtime=runtime, **options)

    return _apply(ENGINE, cast(F, wrapper))


def policy_settings(engine: Engine, choice: PolicyChoice) -> SafeCodeConfig:
    """The settings of the chosen mode with this bundle, and what was changed in them.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    from safecode_trt.policy import mode_settings
    from safecode_trt.records import changed

    return changed(mode_settings(choice.mode, engine.bundle.manifest.safecode), choice.changes, "--set")


def build_policy(engine: Engine, choice: PolicyChoice) -> Policy:
    """The chosen policy with this bundle's prompts, refusals and settings where no other were given.

    Raises:
        ConfigError: a file or a setting is unusable, or stages do not go together.
    """
    from safecode_trt.policy import make_policy
    from safecode_trt.records import overridden
    from safecode_trt.runtime.refusals import read_phrases, with_refusals

    manifest = engine.bundle.manifest
    defaults = manifest.safecode
    if choice.prompts is not None:
        defaults = replace(defaults, prompts=overridden(defaults.prompts, choice.prompts))
    if choice.refusals is not None:
        phrases = read_phrases(choice.refusals)
        defaults = with_refusals(defaults, phrases, engine.prompts, manifest.geometry.vocab_size)
    settings = policy_settings(engine, choice)
    return make_policy(choice.mode, defaults, settings=settings, stages=choice.stages)


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
