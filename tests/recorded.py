"""Records made by hand, for tests of what is read and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safecode_trt.config import SamplingParams
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime import Message, Timings
from safecode_trt.trace.reply_record import RecordedCandidate, RecordedStep, RecordedToken, ReplyRecord

UNSAFE = Verdict(p_unsafe=0.97, threshold=0.5, source="model")
SAFE = Verdict(p_unsafe=0.02, threshold=0.5, source="model")

Row = tuple[str, float, float | None, float, float]


def step(rows: Sequence[Row], *, chosen: int | None = 0, number: int = 0) -> RecordedStep:
    """A step of (text, z_real, z_noised, z_contrast, shift) in the order given; `chosen` is a place in it."""
    candidates = tuple(
        RecordedCandidate(
            id=id,
            text=text,
            z_real=real,
            z_noised=noised,
            z_contrast=contrast,
            shift=shift,
            final=contrast + shift,
        )
        for id, (text, real, noised, contrast, shift) in enumerate(rows)
    )
    token = None if chosen is None else RecordedToken(id=chosen, text=rows[chosen][0])
    return RecordedStep(step=number, chosen=token, forced=False, candidates=candidates)


RAISED = step([(" Sorry", 1.0, 2.0, 1.5, 4.0), (" Sure", 3.0, 2.5, 3.5, 0.0), (" Yes", 2.0, 2.0, 2.0, 0.0)])
RECORD = ReplyRecord(
    time="2026-01-02T03:04:05.678+00:00",
    bundle="build/demo-bundle",
    backend="ort-cpu",
    checkpoint_sha256="0" * 64,
    messages=(Message(role="user", text="can i pour water on it?", images=1),),
    image_sha256=("ab" * 32,),
    mode="safecode",
    settings={"alpha": 0.5, "reference": "cached"},
    sampling=SamplingParams(),
    noise=None,
    verdict=UNSAFE,
    text="Sorry, no.",
    explanation=None,
    tokens=(RecordedToken(id=0, text=" Sorry"),),
    prompt_tokens=33,
    finish_reason="stop",
    fallback_reason=None,
    timings=Timings(
        judge_s=0.0,
        vision_s=0.1,
        prefill_s=0.2,
        first_token_s=0.3,
        per_token_s=0.01,
        explain_s=0.0,
        total_s=0.5,
    ),
    steps=(RAISED,),
)


def record(*steps: RecordedStep, **changes: object) -> ReplyRecord:
    """RECORD with other steps and whatever else differs."""
    numbered = tuple(replace(each, step=number) for number, each in enumerate(steps))
    return replace(RECORD, steps=numbered, **changes)  # type: ignore[arg-type]
