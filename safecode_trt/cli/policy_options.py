"""How to decode, as options: --mode and what changes it, and the policy that they choose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from safecode_trt.cli.options import PATH, gather, note_idle, typed
from safecode_trt.config import MODES, STAGES, Mode, SafeCodeConfig, SamplingParams, StageName
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from safecode_trt.engine import Engine
    from safecode_trt.manifest import SafeCodeDefaults
    from safecode_trt.policy.base import Policy

__all__ = ["PolicyChoice", "build_policy", "note_idle_settings", "policy_options", "policy_settings"]

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


def _choice(
    mode: Mode,
    stages: str | None,
    reference: str | None,
    changes: tuple[str, ...],
    prompts: Path | None,
    refusals: Path | None,
) -> PolicyChoice:
    if reference is not None:
        changes = (f"reference={reference}", *changes)
    named = None if stages is None else tuple(name.strip() for name in stages.split(","))
    return PolicyChoice(
        mode=mode,
        stages=cast("tuple[StageName, ...] | None", named),
        changes=changes,
        prompts=prompts,
        refusals=refusals,
    )


policy_options = gather("choice", _choice, POLICY)
"""Adds --mode and what changes it; the command receives `choice`, a PolicyChoice."""


def note_idle_settings(
    engine: Engine, choice: PolicyChoice, sampling: SamplingParams, *, judged: bool
) -> None:
    """Notes what was given and changes nothing in the chosen mode; `judged` is whether it acts on a verdict."""
    from safecode_trt.policy.settings_read import settings_read

    read = settings_read(
        choice.mode,
        _defaults(engine, choice),
        settings=policy_settings(engine, choice),
        stages=choice.stages,
        sampling=sampling,
    )
    idle = set(read.idle_sampling)
    given = dict.fromkeys(key for key in choice.changed if key not in read.settings)
    if "reference" in given and typed(["reference"]):
        idle.add("reference")
        del given["reference"]
    if not any(key.startswith("prompts.") for key in read.defaults):
        idle.add("prompts")
    if not read.defaults & {"refusal_token_ids", "refusal_tokens"}:
        idle.add("refusals")
    if not judged:
        idle.add("explain")
    note_idle(f"in mode {choice.mode}", idle, [f"--set {key}" for key in given])


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

    defaults = _defaults(engine, choice)
    settings = policy_settings(engine, choice)
    try:
        return make_policy(choice.mode, defaults, settings=settings, stages=choice.stages)
    except ConfigError as error:
        if error.field in SafeCodeConfig.__dataclass_fields__:
            raise ConfigError.of(error, where="--set") from error
        raise


def _defaults(engine: Engine, choice: PolicyChoice) -> SafeCodeDefaults:
    """The bundle's, with the prompts and refusals that were given."""
    from safecode_trt.records import overridden
    from safecode_trt.runtime.refusals import read_phrases, with_refusals

    manifest = engine.bundle.manifest
    defaults = manifest.safecode
    if choice.prompts is not None:
        defaults = replace(defaults, prompts=overridden(defaults.prompts, choice.prompts))
    if choice.refusals is not None:
        phrases = read_phrases(choice.refusals)
        defaults = with_refusals(defaults, phrases, engine.model.prompts, manifest.geometry.vocab_size)
    return defaults
