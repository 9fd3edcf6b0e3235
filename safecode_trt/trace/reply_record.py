"""What is written down about a reply: one record for the trace, the audit log and `--json`.

`docs/trace.md` describes it for readers of the files. Knows no policy: a mode's settings are whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from tokenizers import Tokenizer

from safecode_trt.config import SamplingParams
from safecode_trt.manifest import Manifest
from safecode_trt.policy.base import Candidate, StepTrace, Verdict
from safecode_trt.records import to_dict
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import FinishReason, Reply, Timings

__all__ = [
    "SCHEMA_VERSION",
    "RecordedCandidate",
    "RecordedStep",
    "RecordedToken",
    "ReplyRecord",
    "make_record",
    "token_text",
]

SCHEMA_VERSION = 4
"""1 was the audit log before it had the trace's form; 2 lacked the tokens that led before the last stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedToken:
    """A token with the text that it stands for, leading space included."""

    id: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCandidate:
    """A token of a steered step and its logits, None where there was none or it was not finite.

    `shift` is None where it excluded the token.
    """

    id: int
    text: str
    z_real: float | None
    z_noised: float | None
    z_contrast: float | None
    shift: float | None
    final: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep:
    """A steered step, counted from 0, with its candidates by falling final logit, excluded ones last.

    `chosen` is None where the reply ended in this step by a token that is not among the candidates. The token of a
    `forced` step was put there by a stage whatever the logits say.
    """

    step: int
    chosen: RecordedToken | None
    forced: bool
    candidates: tuple[RecordedCandidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord:
    """A reply with its request: who was asked what about which pictures, how it was decoded, what came.

    `time` is UTC in ISO form; pictures are named by the SHA-256 of their files, in the order of the messages.
    """

    schema_version: int = SCHEMA_VERSION
    time: str
    bundle: str
    backend: str
    checkpoint_sha256: str
    messages: tuple[Message, ...]
    image_sha256: tuple[str, ...]
    mode: str
    settings: Mapping[str, Any]
    sampling: SamplingParams
    noise: Mapping[str, float] | None
    verdict: Verdict | None
    text: str
    explanation: str | None
    tokens: tuple[RecordedToken, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    fallback_reason: str | None
    timings: Timings
    steps: tuple[RecordedStep, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; every number in it is finite."""
        data: dict[str, Any] = to_dict(self)
        return data


def make_record(
    reply: Reply,
    *,
    bundle: str,
    backend: str,
    manifest: Manifest,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    image_sha256: Sequence[str],
    mode: str,
    settings: Mapping[str, Any],
    sampling: SamplingParams,
) -> ReplyRecord:
    """The record of a reply that was just made; its time is now."""

    def named(token_id: int) -> RecordedToken:
        return RecordedToken(id=token_id, text=token_text(tokenizer, token_id))

    def recorded(step: StepTrace) -> RecordedStep:
        chosen = _chosen(step, reply, manifest.special_tokens.eos_token_ids)
        return RecordedStep(
            step=step.step,
            chosen=None if chosen is None else named(chosen),
            forced=step.forced,
            candidates=tuple(_candidate(candidate, tokenizer) for candidate in step.candidates),
        )

    return ReplyRecord(
        time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        bundle=bundle,
        backend=backend,
        checkpoint_sha256=manifest.source_sha256,
        messages=tuple(messages),
        image_sha256=tuple(image_sha256),
        mode=mode,
        settings=settings,
        sampling=sampling,
        noise=to_dict(reply.noise),
        verdict=reply.verdict,
        text=reply.text,
        explanation=reply.explanation,
        tokens=tuple(map(named, reply.token_ids)),
        prompt_tokens=reply.prompt_tokens,
        finish_reason=reply.finish_reason,
        fallback_reason=reply.fallback_reason,
        timings=reply.timings,
        steps=tuple(map(recorded, reply.trace)),
    )


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of a token inside a sentence: at its beginning many decoders drop the leading space."""
    once = tokenizer.decode([token_id], skip_special_tokens=False)
    return str(tokenizer.decode([token_id, token_id], skip_special_tokens=False))[len(once) :]


def _chosen(step: StepTrace, reply: Reply, eos: Sequence[int]) -> int | None:
    """The token of a step; an end of turn is no part of the reply, but may be a candidate."""
    if step.step < len(reply.token_ids):
        return reply.token_ids[step.step]
    if reply.finish_reason != "stop":
        return None
    return next((each.token_id for each in step.candidates if each.token_id in eos), None)


def _candidate(candidate: Candidate, tokenizer: Tokenizer) -> RecordedCandidate:
    return RecordedCandidate(
        id=candidate.token_id,
        text=token_text(tokenizer, candidate.token_id),
        z_real=_finite(candidate.z_real),
        z_noised=_finite(candidate.z_reference),
        z_contrast=_finite(candidate.z_contrast),
        shift=_finite(candidate.shift),
        final=_finite(candidate.z_final),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
