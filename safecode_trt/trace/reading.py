"""A recorded reply in words: which token led after each stage, and which stage changed that. Draws nothing.

Ranks are among the candidates that the trace recorded of a step, 1 being the largest logit of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from safecode_trt.policy.base import Verdict
from safecode_trt.trace.reply_record import RecordedCandidate, RecordedStep, ReplyRecord

__all__ = ["STAGES", "Ranked", "Stage", "judged", "ranked", "reading", "shown_text", "steers", "step_reading"]

Stage = Literal["reference", "picture", "contrast", "final"]
STAGES: tuple[Stage, ...] = ("reference", "picture", "contrast", "final")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A candidate with its logit and rank by stage; a stage that it did not pass is missing."""

    candidate: RecordedCandidate
    logits: Mapping[Stage, float]
    ranks: Mapping[Stage, int]
    chosen: bool


def ranked(step: RecordedStep) -> list[Ranked]:
    """The candidates of a step in the order of their final logits, excluded ones last, with their ranks by stage."""
    logits = [_logits(candidate) for candidate in step.candidates]
    ranks: list[dict[Stage, int]] = [{} for _ in logits]
    for stage in STAGES:
        places = [place for place, values in enumerate(logits) if stage in values]
        for rank, place in enumerate(sorted(places, key=lambda place: -logits[place][stage]), 1):
            ranks[place][stage] = rank
    seen = [
        Ranked(
            candidate=candidate,
            logits=logits[place],
            ranks=ranks[place],
            chosen=step.chosen is not None and candidate.id == step.chosen.id,
        )
        for place, candidate in enumerate(step.candidates)
    ]
    return sorted(seen, key=lambda each: each.ranks.get("final", len(seen)))


def _logits(candidate: RecordedCandidate) -> dict[Stage, float]:
    """Without a reference there was no contrast, and z_contrast only repeats z_real."""
    contrasted = candidate.z_noised is not None
    values: dict[Stage, float | None] = {
        "reference": candidate.z_noised,
        "picture": candidate.z_real,
        "contrast": candidate.z_contrast if contrasted else None,
        "final": candidate.final,
    }
    return {stage: value for stage, value in values.items() if value is not None}


def reading(record: ReplyRecord) -> str:
    """What made this reply what it is, in one sentence."""
    if record.finish_reason == "fallback":
        return f"the fallback answered, because {record.fallback_reason}"
    if record.finish_reason == "deadline" and record.fallback_reason is not None:
        return f"the reply was cut before its steering was through, because {record.fallback_reason}"
    if record.fallback_reason is not None:
        return f"decoding went on plainly, because {record.fallback_reason}"
    if record.finish_reason == "settled":
        return f"{_who(record.verdict)} settled the answer, and nothing was decoded"
    if not record.steps:
        return "no step was steered" if record.mode == "plain" else "no steered step was recorded"
    changed = [step for step in record.steps if steers(step)]
    if not changed:
        first = step_reading(record.steps[0], record.verdict)
        others = len(record.steps) - 1
        after = "step" if others == 1 else f"{others} steps"
        return first + (f"; nor did any stage in the {after} after it" if others else "")
    first = f"step {changed[0].step + 1}: {step_reading(changed[0], record.verdict)}"
    if len(record.steps) == 1:
        return first
    if len(changed) == 1:
        return f"{first}; in no other step did a stage change which token led"
    return f"{first}; another token came to lead in {len(changed)} of {len(record.steps)} steps"


def steers(step: RecordedStep) -> bool:
    """Whether another token was chosen than the one that led on the picture alone."""
    own = _leader(ranked(step), "picture")
    return own is not None and not own.chosen


def step_reading(step: RecordedStep, verdict: Verdict | None) -> str:
    """What the stages of one step did to the leading token."""
    seen = ranked(step)
    own, last = _leader(seen, "picture"), _leader(seen, "final")
    if own is None or last is None:
        return "no candidate was recorded"
    if step.forced:
        return f"{_who(verdict)} forced {_name(last)}; {_name(own)} led on the picture alone"
    between = _leader(seen, "contrast") or own
    parts = []
    if between is not own:
        parts.append(f"the contrast raised {_name(between)} from rank {between.ranks['picture']} to 1")
    if last is not between:
        before: Stage = "contrast" if "contrast" in last.ranks else "picture"
        parts.append(_moved(between, last, before, verdict))
    elif parts and last.candidate.shift:
        parts.append(f"{_who(verdict)} moved it by {last.candidate.shift:+.2f}")
    chosen = next((each for each in seen if each.chosen), None)
    if chosen is not None and chosen is not last:
        parts.append(f"the draw took {_name(chosen)}, of rank {chosen.ranks['final']}")
    elif chosen is None and seen:
        taken = "the end of the reply" if step.chosen is None else shown_text(step.chosen.text)
        parts.append(f"the draw took {taken}, which is not among the recorded tokens")
    return ", then ".join(parts) or f"{_name(own)} led on the picture alone, and no stage changed that"


def judged(verdict: Verdict) -> str:
    """A verdict in one word."""
    return "abstained" if verdict.abstained else "unsafe" if verdict.unsafe else "safe"


def shown_text(text: str, width: int | None = None) -> str:
    """A token's text in quotes, without control characters, cut in the middle to `width` characters."""
    visible = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text.encode("utf-8", "replace").decode()
    )
    if width is not None and len(visible) + 2 > width:
        left = (width - 5 + 1) // 2
        visible = f"{visible[:left]}...{visible[len(visible) - (width - 5 - left) :]}"
    return f'"{visible}"'


def _moved(before: Ranked, after: Ranked, stage: Stage, verdict: Verdict | None) -> str:
    who, down = _who(verdict), before.candidate.shift
    if (after.candidate.shift or 0) > 0:
        return f"{who} raised {_name(after)} from rank {after.ranks.get(stage, '?')} to 1"
    if down is None:
        return f"{who} excluded {_name(before)}, so {_name(after)} led"
    if down < 0:
        to = f"to {before.ranks['final']}" if "final" in before.ranks else "out"
        return f"{who} lowered {_name(before)} from rank 1 {to}, so {_name(after)} led"
    return f"a stage that neither contrasts nor shifts put {_name(after)} before {_name(before)}"


def _who(verdict: Verdict | None) -> str:
    return "the verdict" + ("" if verdict is None else f" (p_unsafe {verdict.p_unsafe:.2f})")


def _leader(seen: list[Ranked], stage: Stage) -> Ranked | None:
    return next((each for each in seen if each.ranks.get(stage) == 1), None)


def _name(each: Ranked) -> str:
    return shown_text(each.candidate.text)
