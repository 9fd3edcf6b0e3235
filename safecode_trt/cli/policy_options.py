"""How to decode, as options: --mode and what changes it, and the policy that they choose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from safecode_trt.cli.options import PATH, apply
from safecode_trt.config import MODES, STAGES, Mode, SafeCodeConfig, StageName

if TYPE_CHECKING:
    from safecode_trt.policy.base import Policy
    from safecode_trt.runtime import Engine

__all__ = ["PolicyChoice", "build_policy", "policy_options", "policy_settings"]

F = TypeVar("F", bound=Callable[..., Any])

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
    click.option("--prompts", type=PATH, metavar="FILE", help="JSON with other prompts than the bundle's."),
    click.option("--refusals", type=PATH, metavar="FILE", help="Other refusal phrases, one a line."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """How to decode, as the options say: the mode, and what is changed in it."""

    mode: Mode
    stages: tuple[StageName, ...] | None = None
    changes: tuple[str, ...] = ()
    prompts: Path | None = None
    refusals: Path | None = None

    @property
    def changed(self) -> tuple[str, ...]:
        """The keys of the settings that are changed."""
        return tuple(change.partition("=")[0].strip() for change in self.changes)

    @property
    def plain(self) -> bool:
        """Whether nothing is steered: plain decoding has no setting but its fallback."""
        return self.mode == "plain" and not self.stages

    def without_effect(self) -> list[str]:
        """The options that change nothing about this choice."""
        if not self.plain:
            return []
        files = {"--prompts": self.prompts, "--refusals": self.refusals}
        settings = [f"--set {key}" for key in self.changed if key != "fallback"]
        return settings + [name for name, path in files.items() if path]


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

    return apply(POLICY, cast(F, wrapper))


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
