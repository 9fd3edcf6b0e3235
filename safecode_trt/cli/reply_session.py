"""What run and chat share: their options, and one request streamed to the terminal and written down. No verb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from safecode_trt.cli import console
from safecode_trt.cli.judge_options import idle_judge_options, judge_options
from safecode_trt.cli.options import engine_options, gather, note_idle, sampling_options
from safecode_trt.cli.policy_options import (
    PolicyChoice,
    build_policy,
    note_idle_settings,
    policy_options,
    policy_settings,
)
from safecode_trt.cli.recording import Recording, recording_options
from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.errors import ConfigError
from safecode_trt.records import to_dict

if TYPE_CHECKING:
    from safecode_trt.cli.recording import Recorder
    from safecode_trt.engine import Engine
    from safecode_trt.policy.base import Policy
    from safecode_trt.runtime import Message, Reply
    from safecode_trt.runtime.judges import Judge, JudgeConfig
    from safecode_trt.runtime.picture_file import PictureFile
    from safecode_trt.trace.reply_record import ReplyRecord

__all__ = ["ReplyOptions", "ReplySession", "reply_options", "summary"]

OPTIONS = (
    policy_options,
    judge_options,
    click.option(
        "--explain-refusals/--no-explain-refusals",
        "explain",
        default=False,
        show_default=True,
        help="Say after a refusal what in the scene is unsafe, and what else could be asked.",
    ),
    sampling_options,
    engine_options,
    recording_options,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyOptions:
    """How a bundle is asked, as the options say."""

    choice: PolicyChoice
    judge: JudgeConfig
    explain: bool
    sampling: SamplingParams
    runtime: RuntimeConfig
    recording: Recording

    @contextmanager
    def open(self, bundle: Path) -> Iterator[ReplySession]:
        """Opens the bundle, and the files that its replies are written to.

        Raises:
            ConfigError: the settings do not fit the bundle or one another.
        """
        from safecode_trt.engine import Engine
        from safecode_trt.runtime.judges import make_judge

        judge = make_judge(self.judge)
        note_idle(f"with --judge {', '.join(self.judge.judges)}", idle_judge_options(self.judge))
        with (
            self.recording.open() as recorder,
            Engine.open(bundle, config=self.runtime, note=console.note) as engine,
        ):
            yield ReplySession(
                engine=engine,
                recorder=recorder,
                sampling=self.sampling,
                choice=self.choice,
                judge=judge,
                explain=self.explain,
            )


reply_options = gather("options", ReplyOptions, OPTIONS)
"""Adds all options of a reply; the command receives `options`, a ReplyOptions."""


@dataclass(kw_only=True)
class ReplySession:
    """An opened bundle, how it decodes, and where its replies are written down.

    Raises:
        ConfigError: the settings do not fit the bundle or one another.
    """

    engine: Engine
    recorder: Recorder
    sampling: SamplingParams
    choice: PolicyChoice
    judge: Judge | None = None
    explain: bool = False
    policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        self.choose(self.choice)

    def choose(self, choice: PolicyChoice) -> None:
        """Decodes as `choice` says from now on; with one that is refused, all stays as it was.

        Raises:
            ConfigError: the settings do not fit the bundle or one another.
        """
        policy = build_policy(self.engine, choice)
        if self.judge is not None:
            if not policy.plan.judged:
                raise ConfigError(
                    f"has no effect in mode {choice.mode}, which acts on no verdict",
                    field="judges",
                    fix="leave it out, or choose another --mode",
                )
            if "threshold" in choice.changed:
                raise ConfigError(
                    "is for the judge self, and another one was named",
                    field="threshold",
                    where="--set",
                    fix="pass --judge-threshold",
                )
        note_idle_settings(self.engine, choice, self.sampling, judged=policy.plan.judged)
        self.choice, self.policy = choice, policy

    def ask(self, messages: Sequence[Message], pictures: Sequence[PictureFile], *, show: bool) -> ReplyRecord:
        """Answers, with `show` on stdout as the text comes."""
        from safecode_trt.trace.reply_record import make_record

        bundle = self.engine.bundle
        reply = self._stream(messages, pictures, show=show)
        record = make_record(
            reply,
            bundle=str(bundle.path),
            backend=self.engine.model.backend,
            manifest=bundle.manifest,
            tokenizer=self.engine.model.prompts.tokenizer,
            messages=messages,
            image_sha256=[picture.sha256 for picture in pictures],
            mode=self.choice.mode,
            settings=self._settings(),
            sampling=self.sampling,
        )
        self.recorder.write(record, pictures)
        return record

    def _stream(self, messages: Sequence[Message], pictures: Sequence[PictureFile], *, show: bool) -> Reply:
        reply = None
        for chunk in self.engine.stream(
            messages,
            image=pictures,
            policy=self.policy,
            sampling=self.sampling,
            judge=self.judge,
            explain=self.explain,
        ):
            if show:
                click.echo(console.printable(chunk.text), nl=False)
            reply = chunk.reply
        if show:
            click.echo()
        return cast("Reply", reply)  # the last chunk has it

    def _settings(self) -> dict[str, Any]:
        """All of the mode, with the stages and files that replace its own; plain decoding has but a fallback."""
        choice, settings = self.choice, policy_settings(self.engine, self.choice)
        others = {"stages": choice.stages, "prompts": choice.prompts, "refusals": choice.refusals}
        given = {
            name: str(value) if isinstance(value, Path) else value for name, value in others.items() if value
        }
        if choice.plain:
            return {"fallback": settings.fallback}
        return {**to_dict(given), **to_dict(settings)}


def summary(record: ReplyRecord) -> str:
    """How the reply came about, in one line."""
    parts = []
    if record.verdict:
        word = "unsafe" if record.verdict.unsafe else "safe"
        if record.verdict.abstained:
            word = f"uncertain, perhaps {word}"
        by = "" if record.verdict.source == "self" else f", says {record.verdict.source}"
        parts.append(f"{word} (p_unsafe {record.verdict.p_unsafe:.2f}{by})")
    if record.fallback_reason:
        parts.append(f"fallback: {record.fallback_reason}")
    elif record.finish_reason == "settled":
        parts.append(f"answered by the policy after {record.timings.total_s * 1e3:.0f} ms, nothing decoded")
    elif record.finish_reason != "stop":
        parts.append(f"ended by {record.finish_reason.replace('_', ' ')}")
    if record.tokens:
        count, times = len(record.tokens), record.timings
        parts.append("1 token" if count == 1 else f"{count} tokens")
        parts.append(f"first after {times.first_token_s * 1e3:.0f} ms")
        if count > 1:
            parts.append(f"then {times.per_token_s * 1e3:.1f} ms each")
    return console.printable(", ".join(parts))
