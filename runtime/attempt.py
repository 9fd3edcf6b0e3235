"""One policy's answer to a request: features, prompt, steered steps, plain steps. Knows no judge and no fallback."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from safecode_trt.config import SamplingParams
from safecode_trt.deadline import Cancelled, Deadline
from safecode_trt.errors import BackendError, CapacityError, DeadlineError, SteeringError
from safecode_trt.models import Features
from safecode_trt.ops.sample import Sampler, make_sampler
from safecode_trt.policy.base import Plan, Policy, Steering, StepTrace, Verdict
from safecode_trt.policy.plain import PlainPolicy
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.decode import Token, decode
from safecode_trt.runtime.explanation import explain, refuses
from safecode_trt.runtime.model import Model, Prefilled
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import Chunk, FinishReason
from safecode_trt.runtime.request import Request
from safecode_trt.runtime.text_stream import TextStream

__all__ = ["FAILURES", "Attempt", "Inputs"]

FAILURES = (SteeringError, BackendError, MemoryError)
"""The exceptions after which the policy's fallback answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What all attempts at one reply share; `features` are the pictures' as far as they are known."""

    model: Model
    messages: Sequence[Message]
    images: Sequence[Image.Image]
    sampling: SamplingParams
    deadline: Deadline
    features: dict[FeatureKey, Features] = field(default_factory=dict)

    def prepare(self, plan: Plan) -> Request:
        """The request under a plan; raises as `Model.prepare` does."""
        return self.model.prepare(self.messages, self.images, plan)


class Attempt:
    """An answer while it is made, and what is known of it so far."""

    def __init__(self, inputs: Inputs, policy: Policy, request: Request) -> None:
        self._inputs, self._policy, self.request = inputs, policy, request
        self._text = TextStream(inputs.model.prompts.tokenizer, inputs.sampling.stop)
        self._limit = inputs.sampling.max_new_tokens
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
            DeadlineError: the time is over before the steered steps are. Where nothing is steered the answer only ends.
            SteeringError: the verdict or the logits cannot be trusted.
            BackendError: the backend has failed, or with a MemoryError has no room.
        """
        inputs, model, deadline = self._inputs, self._inputs.model, self._inputs.deadline
        begin = deadline.elapsed
        try:
            features = model.features(self.request, seed=inputs.sampling.seed, known=inputs.features)
            self.vision_s = deadline.elapsed - begin
            deadline.check("the vision encoder")
            ready = model.prefill(self.request, features)
            try:
                self.prefill_s = deadline.elapsed - begin - self.vision_s
                deadline.check("the prompt")
                names = [context.name for context in self._policy.plan.contexts]
                steering = self._policy.begin(dict(zip(names, ready.logits, strict=True)))
                self.verdict = steering.verdict
                reason = yield from self._decode(ready, steering)
                if explained and reason in ("stop", "settled"):
                    self._explain(ready)
                return reason
            finally:
                model.release(ready.cache)
        except DeadlineError:
            if not isinstance(self._policy, PlainPolicy):
                raise
            return "deadline"

    def rest(self) -> Iterator[Chunk]:
        """What the text stream has held back, and the explanation."""
        if rest := "" if self._answer is not None else self._text.finish():
            yield Chunk(text=rest)
        if self.explanation is not None:
            yield Chunk(text=f" {self.explanation}")

    def _decode(self, ready: Prefilled, steering: Steering) -> Generator[Chunk, None, FinishReason]:
        model, sampling = self._inputs.model, self._inputs.sampling
        eos = model.bundle.manifest.special_tokens.eos_token_ids
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
            session=model.session,
            cache=ready.cache,
            builder=model.builder,
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
        """Those of the steered steps and of the rest, drawing from one random generator."""
        sampling = self._inputs.sampling
        random = np.random.Generator(np.random.PCG64(sampling.seed))
        first, rest = (steering.sampling(sampling, steered=steered) for steered in (True, False))
        self._limit = min(sampling.max_new_tokens, rest.max_new_tokens)
        return make_sampler(first, random), make_sampler(rest, random)

    def _note(self, token: Token) -> None:
        if not self.first_token_s:
            self.first_token_s = self._inputs.deadline.elapsed
        if token.trace is not None:
            self.traces.append(token.trace)

    def _over(self, token: Token) -> FinishReason | None:
        if self._text.stopped:
            return "stop"
        if len(self.tokens) >= self._limit:
            return "length"
        deadline = self._inputs.deadline
        if deadline.cancelled():
            return "cancelled"
        if token.steered:
            deadline.check("the steered steps")
        elif deadline.passed:
            return "deadline"
        return None

    def _explain(self, ready: Prefilled) -> None:
        """Adds an explanation to a refusal; whatever goes wrong, the refusal stays as it is."""
        inputs, verdict = self._inputs, self.verdict
        if verdict is None or not verdict.unsafe or verdict.abstained:
            return
        text = self._text.whole if self._answer is None else self._answer
        if not refuses(text, inputs.model.manifest.safecode):
            return
        begin = inputs.deadline.elapsed
        try:
            self.explanation = explain(
                inputs.model,
                inputs.messages,
                self.request,
                ready,
                seed=inputs.sampling.seed,
                known=inputs.features,
                deadline=inputs.deadline,
            )
        except (*FAILURES, Cancelled) as error:
            if not isinstance(error, Cancelled | DeadlineError):
                inputs.model.forget()
        self.explain_s = inputs.deadline.elapsed - begin
