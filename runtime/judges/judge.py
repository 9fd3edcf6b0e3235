"""Who gives the verdict: the interface, and what a judge is given. Knows no particular judge.

A judge returns a verdict or raises SteeringError, upon which the policy's fallback answers; it never says `safe`
because something went wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from safecode_trt.deadline import Deadline
from safecode_trt.models import Features
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.model import Model
from safecode_trt.runtime.prompt import Message

__all__ = ["Case", "Judge", "Keyed", "case_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A conversation that ends with the request, and its pictures, upright and in RGB.

    `features` are the pictures' as far as they are known, for judges that ask the bundle's own model; it is
    shared with the reply. `deadline` is the reply's, to be checked before anything that takes long. `key` is the item's
    in a benchmark.
    """

    model: Model
    messages: Sequence[Message]
    images: Sequence[Image.Image]
    seed: int = 0
    key: str = ""
    features: dict[FeatureKey, Features] = field(default_factory=dict)
    deadline: Deadline = field(default_factory=Deadline)

    @property
    def request(self) -> str:
        """The user's last words."""
        return self.messages[-1].text


class Judge(Protocol):
    """Says how unsafe it is to help with a request in its scene."""

    @property
    def name(self) -> str:
        """As in `--judge`, without what is secret or long."""

    def judge(self, case: Case) -> Verdict:
        """The verdict.

        Raises:
            SteeringError: there is none that can be trusted.
        """


@dataclass(frozen=True, slots=True)
class Keyed:
    """A judge that is told the key of the item it judges, for those that look verdicts up by it."""

    inner: Judge
    key: str

    @property
    def name(self) -> str:
        return self.inner.name

    def judge(self, case: Case) -> Verdict:
        """The inner judge's verdict."""
        return self.inner.judge(replace(case, key=self.key))


def case_key(messages: Sequence[Message], images: Sequence[Image.Image]) -> str:
    """SHA-256, in hex, of what is said by whom and of the pictures' sizes and pixels (as `open_picture` has them)."""
    digest = hashlib.sha256()
    for message in messages:
        text = message.text.encode()
        digest.update(f"{message.role} {message.images} {len(text)}\n".encode() + text)
    for image in images:
        digest.update(f"{image.width}x{image.height}\n".encode() + image.tobytes())
    return digest.hexdigest()
