"""What a request brings back: text with its verdict, its trace, its timings, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from safecode_trt.policy.base import Noise, StepTrace, Verdict
from safecode_trt.records import to_dict

__all__ = ["Chunk", "FinishReason", "Reply", "Timings"]

FinishReason = Literal["stop", "length", "capacity", "deadline", "cancelled", "settled", "fallback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of a reply and of its parts, in their order.

    `judge_s` is of a judge that is asked beforehand; the model's own, in the reply's batch, is part of the prefill.
    `first_token_s` is from the beginning, `per_token_s` for each later token.
    """

    judge_s: float
    vision_s: float
    prefill_s: float
    first_token_s: float
    per_token_s: float
    explain_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A finished reply. `fallback_reason` says what could not be trusted, and `backend_failed` that it was the backend.

    With finish_reason `fallback` the text is the policy's, and with `settled` too, where nothing went wrong; neither
    has tokens. The text ends with the `explanation` where a refusal got one. `noise` is that of the noised picture.
    """

    text: str
    explanation: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    fallback_reason: str | None
    backend_failed: bool = False
    verdict: Verdict | None
    trace: tuple[StepTrace, ...]
    seed: int
    noise: Noise | None
    prompt_tokens: int
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the verdict carries `unsafe` in addition to p_unsafe and the threshold."""
        data: dict[str, Any] = to_dict(self)
        if self.verdict is not None:
            data["verdict"]["unsafe"] = self.verdict.unsafe
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New text of a streamed reply; the last chunk carries the whole reply."""

    text: str
    reply: Reply | None = None
