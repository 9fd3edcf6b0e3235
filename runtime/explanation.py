"""What a refusal may add: which thing in the scene makes it unsafe, in the model's words, and a way out in ours.

The clause is one greedy sentence that answers the bundle's question. It is left out where it is empty, is a refusal
itself, or repeats the request: a refusal must not carry what it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from safecode_trt.deadline import Deadline
from safecode_trt.errors import PromptError
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.models import Features
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.model import Model, Prefilled
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.refusals import opens_with, words_of
from safecode_trt.runtime.request import Request
from safecode_trt.runtime.side_queries import complete, prefill_again

__all__ = ["CLAUSE_TOKENS", "RUN", "explain", "presentable", "refuses"]

CLAUSE_TOKENS = 32
RUN = 3
"""So many content words of the request in a row, or all of them if it has fewer, may not be in a clause."""

# Words that say nothing of what is asked for; other languages have none here, and every word of theirs counts.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
a about all am an and any are as at be been by can could did do does for from get got had has have he help her
here him his how i if in into is it its just let may me might my no not now of on or our out please shall she
should so some tell than that the their them then there these they this those to up us want was we were what
when where which who why will with would you your
""",
    )
)


def explain(
    model: Model,
    messages: Sequence[Message],
    asked: Request,
    ready: Prefilled,
    *,
    seed: int,
    known: dict[FeatureKey, Features],
    deadline: Deadline,
) -> str | None:
    """The explanation of a refusal of `asked`, whose cache in `ready` is used up; None if there is none to show.

    Raises:
        SteeringError: the logits are not finite, or the reply's time is over.
    """
    defaults = model.bundle.manifest.safecode
    *earlier, last = messages
    question = replace(last, text=defaults.reason_template.replace("{request}", last.text))
    try:
        request = model.prepare([*earlier, question], asked.images, PLAIN.plan)
    except PromptError:  # the question is longer than the request, and there is no room for it
        return None
    features = model.features(request, seed=seed, known=known)
    clause = complete(
        model,
        request,
        prefill_again(model, request, features, asked, ready),
        max_new_tokens=CLAUSE_TOKENS,
        deadline=deadline,
    )
    reason = presentable(clause, last.text, defaults.refusal_phrases)
    return None if reason is None else defaults.explanation.replace("{reason}", reason)


def refuses(text: str, defaults: SafeCodeDefaults) -> bool:
    """Whether a reply opens with a refusal phrase. Its first token does not say: helpful answers may begin alike."""
    return opens_with(text, (*defaults.refusal_phrases, defaults.fallback_refusal))


def presentable(clause: str, request: str, refusal_phrases: Sequence[str]) -> str | None:
    """The first sentence of a clause, or None where it should not be shown."""
    line = clause.strip().split("\n")[0].strip()
    sentence = re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]
    words, wanted = _content_words(sentence), _content_words(request)
    if not words or opens_with(sentence, refusal_phrases):
        return None
    size = min(RUN, len(wanted))
    if size and set(_runs(wanted, size)) & set(_runs(words, size)):
        return None
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."


def _content_words(text: str) -> list[str]:
    return [word for word in words_of(text) if word not in FUNCTION_WORDS]


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
