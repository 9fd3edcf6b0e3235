"""Several judges as one. If one of them has no verdict, there is none: the others are no substitute for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from safecode_trt.errors import DeadlineError, SteeringError
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime.judges.judge import Case, Judge

__all__ = ["EnsembleJudge", "Rule"]

Rule = Literal["max", "mean", "majority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleJudge:
    """Asks all members, one after the other.

    `max` and `mean` are of their P(unsafe); `majority` is the share of them for whom it is unsafe by their own
    thresholds, and half of them are enough: its own threshold lies midway between that share and the one below it.
    """

    members: tuple[Judge, ...]
    rule: Rule
    threshold: float

    @property
    def name(self) -> str:
        return f"{self.rule}({', '.join(member.name for member in self.members)})"

    def judge(self, case: Case) -> Verdict:
        """What the rule makes of the members' verdicts.

        Raises:
            SteeringError: a member has none.
        """
        verdicts = []
        for member in self.members:
            case.deadline.check("the judge")
            try:
                verdicts.append(member.judge(case))
            except DeadlineError:
                raise
            except SteeringError as error:
                raise SteeringError(f"the judge {member.name} has no verdict: {error}") from error
        beliefs = [verdict.p_unsafe for verdict in verdicts]
        threshold = self.threshold
        if self.rule == "max":
            p = max(beliefs)
        elif self.rule == "mean":
            p = sum(beliefs) / len(beliefs)
        else:
            p = sum(verdict.unsafe for verdict in verdicts) / len(verdicts)
            # On a threshold of 0.5 an even vote would be unsafe and lean to no side.
            threshold = (math.ceil(len(verdicts) / 2) - 0.5) / len(verdicts)
        captions = [verdict.caption for verdict in verdicts if verdict.caption is not None]
        return Verdict(
            p_unsafe=p,
            threshold=threshold,
            source=self.name,
            caption=captions[0] if captions else None,
        )
