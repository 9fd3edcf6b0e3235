"""One reply from its request to its last token, with the fail-safe.

Whatever cannot be trusted (no verdict, logits that are not finite, no memory, no time for the steered steps) ends
in the policy's fallback, with the reason in the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from safecode_trt.config import SamplingParams
from safecode_trt.errors import BackendError, CapacityError, PromptError, SteeringError
from safecode_trt.models import Features
from safecode_trt.ops.sample import Sampler, make_sampler
from safecode_trt.policy.base import Policy, Steering, StepTrace, Verdict
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime.clock import Clock, LateError
from safecode_trt.runtime.contexts import Look
from safecode_trt.runtime.decode import Token, decode
from safecode_trt.runtime.explanation import explain, refuses
from safecode_trt.runtime.judges.base import Case, Judge
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import Chunk, FinishReason, Reply, Timings
from safecode_trt.runtime.request import Request
from safecode_trt.runtime.text import TextStream

if TYPE_CHECKING:
    from safecode_trt.runtime.engine import Engine, Prefilled

__all__ = ["Generation"]


class Generation:
    """The state of one reply while it is made."""

    def __init__(
        self,
        engine: Engine,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        *,
        policy: Policy,
        sampling: SamplingParams,
        cancel: Callable[[], bool] | None = None,
        judge: Judge | None = None,
        explain: bool = False,
    ) -> None:
        self._engine, self._messages, self._images = engine, messages, images
        self._policy, self._sampling, self._cancel = policy, sampling, cancel
        self._judge, self._explain = judge, explain
        # Before any work: what the caller did wrong is raised here.
        self._request = engine.prepare(messages, images, policy.plan)
        self._seen: dict[Look, Features] = {}
        self._text = TextStream(engine.prompts.tokenizer, sampling.stop)
        self._tokens: list[int] = []
        self._traces: list[StepTrace] = []
        self._verdict: Verdict | None = None
        self._answer_text: str | None = None
        self._explanation: str | None = None
        self._limit = sampling.max_new_tokens
        self._fallback_reason: str | None = None
        self._judge_s = self._vision_s = self._prefill_s = self._first_token_s = self._explain_s = 0.0
        self._clock = Clock(sampling.time_limit)

    def chunks(self) -> Iterator[Chunk]:
        """Yields text as it comes and the reply at the end."""
        reason: FinishReason
        try:
            asked = self._judge if self._policy.plan.judged else None
            policy = self._policy if asked is None else self._informed(asked)
            reason = yield from self._answer(self._request, policy)
        except (SteeringError, BackendError, MemoryError) as error:
            reason = yield from self._fall_back(error)
        yield from self._rest()
        if self._explanation is not None:
            yield Chunk(text=f" {self._explanation}")
        yield Chunk(text="", reply=self._reply(reason))

    def _informed(self, judge: Judge) -> Policy:
        """The policy with the judge's verdict, which may ask for other prompts."""
        case = Case(
            engine=self._engine,
            messages=self._messages,
            images=self._images,
            seed=self._sampling.seed,
            seen=self._seen,
            check_time=lambda: self._clock.check("the judge"),
        )
        self._verdict = judge.judge(case)
        self._judge_s = self._clock.elapsed
        self._clock.check("the judge")
        policy = self._policy.informed(self._verdict)
        try:
            self._request = self._engine.prepare(self._messages, self._images, policy.plan)
        except PromptError as error:
            raise SteeringError(f"the prompt with the verdict cannot be made: {error}") from error
        return policy

    def _answer(self, request: Request, policy: Policy) -> Generator[Chunk, None, FinishReason]:
        engine, begin = self._engine, self._clock.elapsed
        features = engine.features(request, seed=self._sampling.seed, seen=self._seen)
        self._vision_s = self._clock.elapsed - begin
        self._clock.check("the vision encoder")
        ready = engine.prefill(request, features)
        try:
            self._prefill_s = self._clock.elapsed - begin - self._vision_s
            self._clock.check("the prompt")
            names = [context.name for context in policy.plan.contexts]
            steering = policy.begin(dict(zip(names, ready.logits, strict=True)))
            self._verdict = steering.verdict
            reason = yield from self._decode(request, ready, policy, steering)
            if reason in ("stop", "settled") and self._explain:
                self._explain_refusal(request, ready)
            return reason
        finally:
            engine.release(ready.cache)

    def _decode(
        self, request: Request, ready: Prefilled, policy: Policy, steering: Steering
    ) -> Generator[Chunk, None, FinishReason]:
        engine, eos = self._engine, self._engine.bundle.manifest.special_tokens.eos_token_ids
        if steering.answer is not None:
            yield self._say(steering.answer)
            return "settled"
        tokens = decode(
            ready.logits,
            plan=policy.plan,
            steering=steering,
            samplers=self._samplers(steering),
            history=request.tokens["request"].tolist(),
            session=engine.session,
            cache=ready.cache,
            builder=engine.builder,
            tail=ready.tail,
        )
        while True:
            try:
                token = next(tokens)
            except CapacityError:
                return "capacity"
            self._note(token)
            if token.token_id in eos and not self._sampling.ignore_eos:
                return "stop"
            self._tokens.append(token.token_id)
            if piece := self._text.push(token.token_id):
                yield Chunk(text=piece)
            if (reason := self._over(token)) is not None:
                return reason

    def _explain_refusal(self, request: Request, ready: Prefilled) -> None:
        """Adds an explanation to a refusal; whatever goes wrong, the refusal stays as it is."""
        verdict, begin = self._verdict, self._clock.elapsed
        if verdict is None or not verdict.unsafe or verdict.abstained:
            return
        text = self._text.whole if self._answer_text is None else self._answer_text
        if not refuses(text, self._tokens, self._engine.bundle.manifest.safecode):
            return
        try:
            self._explanation = explain(
                self._engine,
                self._messages,
                request,
                ready,
                seed=self._sampling.seed,
                seen=self._seen,
                check_time=lambda: self._clock.check("the explanation"),
            )
        except (SteeringError, BackendError, MemoryError) as error:
            if not isinstance(error, LateError):
                self._engine.forget()
        self._explain_s = self._clock.elapsed - begin

    def _rest(self) -> Iterator[Chunk]:
        """What the text stream has held back."""
        if rest := "" if self._answer_text is not None else self._text.finish():
            yield Chunk(text=rest)

    def _samplers(self, steering: Steering) -> tuple[Sampler, Sampler]:
        """Those of the steered steps and of the rest, drawing from one source of chance."""
        random = np.random.Generator(np.random.PCG64(self._sampling.seed))
        first, rest = (steering.sampling(self._sampling, steered=steered) for steered in (True, False))
        self._limit = min(self._sampling.max_new_tokens, rest.max_new_tokens)
        return make_sampler(first, random), make_sampler(rest, random)

    def _say(self, text: str) -> Chunk:
        """A reply's text that no token makes up."""
        self._answer_text = text
        return Chunk(text=text)

    def _note(self, token: Token) -> None:
        if not self._first_token_s:
            self._first_token_s = self._clock.elapsed
        if token.trace is not None:
            self._traces.append(token.trace)

    def _over(self, token: Token) -> FinishReason | None:
        if self._text.stopped:
            return "stop"
        if len(self._tokens) >= self._limit:
            return "length"
        if self._cancel is not None and self._cancel():
            return "cancelled"
        if token.steered:
            self._clock.check("the steered steps")
        elif self._clock.late:
            return "time_limit"
        return None

    def _fall_back(self, error: Exception) -> Generator[Chunk, None, FinishReason]:
        fallback = self._policy.fallback
        if not isinstance(error, LateError):
            self._engine.forget()
        if isinstance(error, LateError) and fallback.kind != "refuse":
            return "time_limit"
        if fallback.kind == "error":
            raise error
        self._fallback_reason = str(error) or type(error).__name__
        shown = self._text.text
        self._tokens, self._traces = [], []
        self._text = TextStream(self._engine.prompts.tokenizer, self._sampling.stop)
        if shown:
            yield Chunk(text="\n")
        if fallback.kind == "plain":
            request = self._engine.prepare(self._messages, self._images, PLAIN.plan)
            return (yield from self._answer(request, PLAIN))
        yield self._say(fallback.text)
        return "fallback"

    def _reply(self, reason: FinishReason) -> Reply:
        total, request = self._clock.elapsed, self._request
        later = max(len(self._tokens) - 1, 1)
        decode_s = total - self._explain_s - self._first_token_s
        text = self._text.text.strip() if self._answer_text is None else self._answer_text
        return Reply(
            text=text if self._explanation is None else f"{text} {self._explanation}",
            explanation=self._explanation,
            token_ids=tuple(self._tokens),
            finish_reason=reason,
            fallback_reason=self._fallback_reason,
            verdict=self._verdict,
            trace=tuple(self._traces),
            seed=self._sampling.seed,
            noise=request.plan.noise,
            prompt_tokens=len(request.tokens["request"]),
            timings=Timings(
                judge_s=self._judge_s,
                vision_s=self._vision_s,
                prefill_s=self._prefill_s,
                first_token_s=self._first_token_s,
                per_token_s=decode_s / later if self._first_token_s else 0.0,
                explain_s=self._explain_s,
                total_s=total,
            ),
        )
