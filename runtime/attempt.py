"""One policy's answer to a request: features, prompt, steered steps, plain steps. Knows no judge and no fallback."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from safecode_trt.config import SamplingParams
from safecode_trt.errors import BackendError, CapacityError, SteeringError
from safecode_trt.models import Features
from safecode_trt.ops.sample import Sampler, make_sampler
from safecode_trt.policy.base import Plan, Policy, Steering, StepTrace, Verdict
from safecode_trt.policy.plain import PlainPolicy
from safecode_trt.runtime.clock import Clock, LateError
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.decode import Token, decode
from safecode_trt.runtime.explanation import explain, refuses
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import Chunk, FinishReason
from safecode_trt.runtime.request import Request
from safecode_trt.runtime.text_stream import TextStream

if TYPE_CHECKING:
    from safecode_trt.runtime.engine import Engine, Prefilled

__all__ = ["FAILURES", "Asked", "Attempt"]

FAILURES = (SteeringError, BackendError, MemoryError)
"""What a reply is not to be trusted after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What all attempts at one reply have in common; `seen` are the pictures' features as far as they are known."""

    engine: Engine
    messages: Sequence[Message]
    images: Sequence[Image.Image]
    sampling: SamplingParams
    clock: Clock
    cancel: Callable[[], bool]
    seen: dict[FeatureKey, Features] = field(default_factory=dict)

    def prepare(self, plan: Plan) -> Request:
        """The request under a plan; raises what `Engine.prepare` does."""
        return self.engine.prepare(self.messages, self.images, plan)


class Attempt:
    """An answer while it is made, and what is known of it so far."""

    def __init__(self, asked: Asked, policy: Policy, *, plan: Plan | None = None) -> None:
        """Plans the request, under another plan than the policy's if one is given; raises what `prepare` does."""
        self._asked, self._policy = asked, policy
        self.request = asked.prepare(plan or policy.plan)
        self._text = TextStream(asked.engine.prompts.tokenizer, asked.sampling.stop)
        self._limit = asked.sampling.max_new_tokens
        self._answer: str | None = None
        self.tokens: list[int] = []
        self.traces: list[StepTrace] = []
        self.verdict: Verdict | None = None
        self.explanation: str | None = None
        self.vision_s = self.prefill_s = self.first_token_s = self.explain_s = 0.0

    @property
    def text(self) -> str:
        """What has been given out."""
        return self._text.text if self._answer is None else self._answer

    def chunks(self, *, explained: bool = False) -> Generator[Chunk, None, FinishReason]:
        """Yields text as it comes, and returns why it ended.

        Raises:
            LateError: the time is over before the steered steps are. Where nothing is steered the answer only ends.
            SteeringError: the verdict or the logits cannot be trusted.
            BackendError: the backend has failed, or with a MemoryError has no room.
        """
        engine, clock, begin = self._asked.engine, self._asked.clock, self._asked.clock.elapsed
        try:
            features = engine.features(self.request, seed=self._asked.sampling.seed, seen=self._asked.seen)
            self.vision_s = clock.elapsed - begin
            clock.check("the vision encoder")
            ready = engine.prefill(self.request, features)
            try:
                self.prefill_s = clock.elapsed - begin - self.vision_s
                clock.check("the prompt")
                names = [context.name for context in self._policy.plan.contexts]
                steering = self._policy.begin(dict(zip(names, ready.logits, strict=True)))
                self.verdict = steering.verdict
                reason = yield from self._decode(ready, steering)
                if explained and reason in ("stop", "settled"):
                    self._explain(ready)
                return reason
            finally:
                engine.release(ready.cache)
        except LateError:
            if not isinstance(self._policy, PlainPolicy):
                raise
            return "time_limit"

    def rest(self) -> Iterator[Chunk]:
        """What the text stream has held back, and the explanation."""
        if rest := "" if self._answer is not None else self._text.finish():
            yield Chunk(text=rest)
        if self.explanation is not None:
            yield Chunk(text=f" {self.explanation}")

    def _decode(self, ready: Prefilled, steering: Steering) -> Generator[Chunk, None, FinishReason]:
        engine, sampling = self._asked.engine, self._asked.sampling
        eos = engine.bundle.manifest.special_tokens.eos_token_ids
        if steering.answer is not None:
            self._answer = steering.answer
            yield Chunk(text=steering.answer)
            return "settled"
        tokens = decode(
            ready.logits,
            plan=self._policy.plan,
            steering=steering,
            samplers=self._samplers(steering),
            history=self.request.tokens["request"].tolist(),
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
            if token.token_id in eos and not sampling.ignore_eos:
                return "stop"
            self.tokens.append(token.token_id)
            if piece := self._text.push(token.token_id):
                yield Chunk(text=piece)
            if (reason := self._over(token)) is not None:
                return reason

    def _samplers(self, steering: Steering) -> tuple[Sampler, Sampler]:
        """Those of the steered steps and of the rest, drawing from one source of chance."""
        asked = self._asked.sampling
        random = np.random.Generator(np.random.PCG64(asked.seed))
        first, rest = (steering.sampling(asked, steered=steered) for steered in (True, False))
        self._limit = min(asked.max_new_tokens, rest.max_new_tokens)
        return make_sampler(first, random), make_sampler(rest, random)

    def _note(self, token: Token) -> None:
        if not self.first_token_s:
            self.first_token_s = self._asked.clock.elapsed
        if token.trace is not None:
            self.traces.append(token.trace)

    def _over(self, token: Token) -> FinishReason | None:
        if self._text.stopped:
            return "stop"
        if len(self.tokens) >= self._limit:
            return "length"
        if self._asked.cancel():
            return "cancelled"
        if token.steered:
            self._asked.clock.check("the steered steps")
        elif self._asked.clock.late:
            return "time_limit"
        return None

    def _explain(self, ready: Prefilled) -> None:
        """Adds an explanation to a refusal; whatever goes wrong, the refusal stays as it is."""
        asked, verdict = self._asked, self.verdict
        if verdict is None or not verdict.unsafe or verdict.abstained:
            return
        text = self._text.whole if self._answer is None else self._answer
        if not refuses(text, asked.engine.bundle.manifest.safecode):
            return
        begin = asked.clock.elapsed
        try:
            self.explanation = explain(
                asked.engine,
                asked.messages,
                self.request,
                ready,
                seed=asked.sampling.seed,
                seen=asked.seen,
                check_time=lambda: asked.clock.check("the explanation"),
            )
        except FAILURES as error:
            if not isinstance(error, LateError):
                asked.engine.forget()
        self.explain_s = asked.clock.elapsed - begin
