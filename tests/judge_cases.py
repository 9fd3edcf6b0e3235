"""What the tests of judges judge: one picture, one request, and judges by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from safecode_trt.endpoint import EndpointSettings
from safecode_trt.errors import SteeringError
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime import Message
from safecode_trt.runtime.judges import Case, Judge, JudgeConfig, make_judge
from safecode_trt.runtime.model import Model

__all__ = ["CASE", "NO_MODEL", "PICTURE", "REQUEST", "Says", "made"]

PICTURE = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8))
REQUEST = [Message(role="user", text="can i pour water on it?", images=1)]
NO_MODEL = cast(Model, None)
CASE = Case(model=NO_MODEL, messages=REQUEST, images=[PICTURE])


def made(*judges: str, **settings: Any) -> Judge:
    asked = {name: settings.pop(name) for name in EndpointSettings.__dataclass_fields__ if name in settings}
    endpoint = EndpointSettings(**{"backoff": 0.005, **asked})
    judge = make_judge(JudgeConfig(judges=judges, endpoint=endpoint, **settings))
    assert judge is not None
    return judge


@dataclass(frozen=True)
class Says:
    verdict: Verdict | None
    name: str = "says"

    def judge(self, case: Case) -> Verdict:
        if self.verdict is None:
            raise SteeringError("it is down")
        return self.verdict
