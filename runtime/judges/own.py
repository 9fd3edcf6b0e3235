"""The bundle's own model as a judge in passes of its own.

By default it judges in a row of the reply's batch, which costs less; these are for policies that must know the verdict
before they plan, for ensembles, and for verdicts from words alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safecode_trt.errors import PromptError, SteeringError
from safecode_trt.policy.base import Verdict
from safecode_trt.policy.verdict import read_verdict
from safecode_trt.runtime.judges.judge import Case
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.side_queries import first_logits, short_answer

__all__ = ["CAPTION_TOKENS", "SelfCaptionJudge", "SelfJudge"]

CAPTION_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfJudge:
    """The model judges what it sees, as in the reply's batch; a calibration's threshold is used unless one is given."""

    threshold: float | None = None
    name: str = "self"

    def judge(self, case: Case) -> Verdict:
        """The verdict, from the logits of one position.

        Raises:
            SteeringError: the logits cannot be trusted, or the question does not fit.
        """
        return read_verdict(self.logits(case), case.model.bundle.manifest.safecode, threshold=self.threshold)

    def logits(self, case: Case) -> NDArray[np.float32]:
        """The logits (V,) from which the verdict is read.

        Raises:
            SteeringError: the question does not fit.
        """
        asked = _last_words(case, case.model.bundle.manifest.safecode.judge_template)
        with _as_steering_errors():
            return first_logits(case.model, asked, case.images, seed=case.seed, known=case.features)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCaptionJudge:
    """The model captions the picture and then judges from the caption alone, as the paper's judge does.

    The calibration is of verdicts from the picture and is not used.
    """

    threshold: float
    name: str = "self-caption"

    def judge(self, case: Case) -> Verdict:
        """The verdict with its caption.

        Raises:
            SteeringError: the logits cannot be trusted, a question does not fit, or the caption is empty.
        """
        model, defaults = case.model, case.model.bundle.manifest.safecode
        template, caption = defaults.judge_template, None
        with _as_steering_errors():
            if case.images:
                caption = self._caption(case, defaults.caption_prompt)
                template = defaults.caption_judge_template.replace("{caption}", caption)
            asked = [replace(message, images=0) for message in _last_words(case, template)]
            case.deadline.check("the judge")
            logits = first_logits(model, asked, [], seed=case.seed)
        verdict = read_verdict(logits, replace(defaults, calibration=None), threshold=self.threshold)
        return replace(verdict, source=self.name, caption=caption)

    def _caption(self, case: Case, prompt: str) -> str:
        """What the pictures show, whatever was said about them."""
        caption = short_answer(
            case.model,
            [Message(role="user", text=prompt, images=len(case.images))],
            case.images,
            max_new_tokens=CAPTION_TOKENS,
            seed=case.seed,
            known=case.features,
            deadline=case.deadline,
        )
        if not caption:
            raise SteeringError("the judge's caption is empty; there is nothing to judge")
        return caption


def _last_words(case: Case, template: str) -> list[Message]:
    """The conversation with its last request put into a question."""
    *earlier, last = case.messages
    return [*earlier, replace(last, text=template.replace("{request}", last.text))]


@contextmanager
def _as_steering_errors() -> Iterator[None]:
    """The request is in order, or it would not be judged: what does not fit is the judge's question."""
    try:
        yield
    except PromptError as error:
        raise SteeringError(f"the judge cannot be asked: {error}") from error
