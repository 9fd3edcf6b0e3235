"""One reply from its request to its last token, with the fail-safe.

Whatever cannot be trusted (no verdict, logits that are not finite, no memory, no time for the steered steps) ends
in the policy's fallback, with the reason in the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from traceback import clear_frames

from PIL import Image

from safecode_trt.config import SamplingParams
from safecode_trt.deadline import Cancelled, Deadline
from safecode_trt.errors import BackendError, ConfigError, DeadlineError, PromptError, SteeringError
from safecode_trt.policy.base import Policy, Verdict
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime.attempt import FAILURES, Attempt, Inputs
from safecode_trt.runtime.judges.judge import Case, Judge
from safecode_trt.runtime.model import Model
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import Chunk, FinishReason, Reply, Timings

__all__ = ["Generation"]


class Generation:
    """The state of one reply while it is made."""

    def __init__(
        self,
        model: Model,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        *,
        policy: Policy,
        sampling: SamplingParams,
        cancel: Callable[[], bool] | None = None,
        judge: Judge | None = None,
        explain: bool = False,
    ) -> None:
        self._inputs = Inputs(
            model=model,
            messages=messages,
            images=images,
            sampling=sampling,
            deadline=Deadline(sampling.deadline_s, cancelled=cancel or (lambda: False)),
        )
        self._policy, self._explain = policy, explain
        self._judge = judge if policy.plan.judged else None
        # Before any work: what the caller did wrong is raised here.
        request = self._inputs.prepare(policy.plan if self._judge is None else policy.plan.without_judge())
        self._attempt = Attempt(self._inputs, policy, request)
        self._verdict: Verdict | None = None
        self._judge_s = 0.0
        self._fallback_text: str | None = None
        self._fallback_reason: str | None = None
        self._backend_failed = False

    def chunks(self) -> Iterator[Chunk]:
        """Yields text as it comes and the reply at the end."""
        reason: FinishReason
        try:
            if self._judge is not None:
                self._attempt = self._informed(self._judge)
            reason = yield from self._attempt.chunks(explained=self._explain)
        except Cancelled:
            reason = "cancelled"
        except FAILURES as error:
            reason = yield from self._fall_back(error)
        if self._fallback_text is None:
            yield from self._attempt.rest()
        yield Chunk(text="", reply=self._reply(reason))

    def _informed(self, judge: Judge) -> Attempt:
        """An attempt with the judge's verdict, which may ask for other prompts."""
        inputs, deadline = self._inputs, self._inputs.deadline
        begin = deadline.elapsed
        case = Case(
            model=inputs.model,
            messages=inputs.messages,
            images=inputs.images,
            seed=inputs.sampling.seed,
            features=inputs.features,
            deadline=deadline,
        )
        try:
            self._verdict = judge.judge(case)
        except ConfigError as error:  # of a verdict that is none
            raise SteeringError(f"the judge {judge.name} gave no verdict: {error}") from error
        finally:
            self._judge_s = deadline.elapsed - begin
        deadline.check("the judge")
        policy = self._policy.informed(self._verdict)
        try:
            return Attempt(inputs, policy, inputs.prepare(policy.plan))
        except PromptError as error:
            raise SteeringError(f"the prompt with the verdict cannot be made: {error}") from error

    def _fall_back(self, error: Exception) -> Generator[Chunk, None, FinishReason]:
        fallback, late = self._policy.fallback, isinstance(error, DeadlineError)
        self._note(error)
        if fallback.kind == "error":
            raise error
        if fallback.kind == "plain" and late:
            return "deadline"
        if self._attempt.text:
            yield Chunk(text="\n")
        if fallback.kind == "plain":
            _let_go(error)
            self._verdict = self._attempt.verdict or self._verdict
            self._attempt = Attempt(self._inputs, PLAIN, self._inputs.prepare(PLAIN.plan))
            try:
                return (yield from self._attempt.chunks())
            except FAILURES as again:
                self._note(again)
                if not fallback.text:
                    raise
                if self._attempt.text:
                    yield Chunk(text="\n")
        self._fallback_text = fallback.text
        yield Chunk(text=fallback.text)
        return "fallback"

    def _note(self, error: Exception) -> None:
        """Keeps the reason, and nothing of what a reply has computed that may have gone wrong."""
        reason, before = str(error) or type(error).__name__, self._fallback_reason
        self._fallback_reason = reason if before is None else f"{before}; and plain decoding: {reason}"
        self._backend_failed |= isinstance(error, BackendError | MemoryError)
        if not isinstance(error, DeadlineError):
            self._inputs.model.forget()

    def _reply(self, reason: FinishReason) -> Reply:
        total, attempt, said = self._inputs.deadline.elapsed, self._attempt, self._fallback_text
        tokens = tuple(attempt.tokens) if said is None else ()
        first_token_s = attempt.first_token_s if said is None else 0.0
        decode_s = total - attempt.explain_s - first_token_s
        text = attempt.text.strip() if said is None else said
        return Reply(
            text=text if attempt.explanation is None else f"{text} {attempt.explanation}",
            explanation=attempt.explanation,
            token_ids=tokens,
            finish_reason=reason,
            fallback_reason=self._fallback_reason,
            backend_failed=self._backend_failed,
            verdict=attempt.verdict or self._verdict,
            trace=tuple(attempt.traces) if said is None else (),
            seed=self._inputs.sampling.seed,
            noise=attempt.request.plan.noise,
            prompt_tokens=len(attempt.request.tokens["request"]),
            timings=Timings(
                judge_s=self._judge_s,
                vision_s=attempt.vision_s,
                prefill_s=attempt.prefill_s,
                first_token_s=first_token_s,
                per_token_s=decode_s / max(len(tokens) - 1, 1) if first_token_s else 0.0,
                explain_s=attempt.explain_s,
                total_s=total,
            ),
        )


def _let_go(error: BaseException | None) -> None:
    """Clears the frames of an error and of what caused it: they hold a cache, and there may be no room for another."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
