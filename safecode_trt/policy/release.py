"""SafeCoDe as its authors' program does it, which is not what the paper says: for comparisons.

Unsafe: a refusal phrase is chosen by its tokens' probabilities and its beginning forced. Safe: the probabilities of all
tokens of refusal phrases are lowered. Either way the reply goes on with the program's own sampling and length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from safecode_trt.config import ReleaseConfig, SafeCodeConfig, SamplingParams
from safecode_trt.ops.reference import Ids, Logits, argmax_lowest, contrast
from safecode_trt.policy.base import REAL, Context, Verdict
from safecode_trt.policy.contrast import Contrast, ContrastAction, picture_noise
from safecode_trt.policy.modulation import Modulation, check_vocabulary
from safecode_trt.policy.stage import Action, First, Stage, Step

__all__ = ["Phrase", "ReleaseAction", "ReleaseStage", "choose_phrase", "release_stage"]

Phrase = tuple[str, tuple[int, ...]]
"""A refusal phrase and its token ids."""
PREFERRED = ("sorry", "apologize", "unable", "cannot", "can't", "not allowed", "not able to")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAction(Action):
    """One reply: `forced` tokens come first; without them the row is contrasted and the refusal tokens moved."""

    config: ReleaseConfig
    unsafe: bool
    forced: tuple[int, ...] = ()
    contrast: ContrastAction
    modulation: Modulation

    def apply(self, step: Step) -> Step:
        """The forced token alone, or the contrasted and modulated row; the likeliest alone in a safe first step."""
        if self.forced:
            return replace(step, z=_only(step.z, self.forced[step.number]), forced=True)
        step = self.contrast.apply(step)
        z, moved = self.modulation.apply(step.z)
        if step.number == 0 and not self.unsafe and self.config.own_sampling:
            z = _only(z, int(argmax_lowest(z)))
        return replace(step, z=z, shifts={token: self.modulation.amount for token in moved})

    def sampling(self, asked: SamplingParams, *, steered: bool) -> SamplingParams:
        """The program's temperatures, and its lengths where they are shorter than what was asked for."""
        config = self.config
        most = config.unsafe_tokens if self.unsafe else config.safe_tokens
        if most is not None:
            asked = replace(asked, max_new_tokens=min(asked.max_new_tokens, most))
        if not config.own_sampling:
            return asked
        temperature, top_p = (
            (config.unsafe_temperature, config.unsafe_top_p)
            if self.unsafe
            else (config.safe_temperature, config.safe_top_p)
        )
        return replace(asked, temperature=temperature, top_p=1.0 if steered else top_p, top_k=0, min_p=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseStage(Stage):
    """The whole program; `refusal_ids` are all tokens of all `phrases`, `reference` the context to contrast with."""

    settings: SafeCodeConfig
    phrases: tuple[Phrase, ...]
    refusal_ids: Ids
    reference: str = "noised"

    def without_pictures(self) -> ReleaseStage:
        """The program with an alpha of 0, so that the row is contrasted with nothing."""
        settings = replace(self.settings, alpha=0.0)
        return replace(self, contexts=(), noise=None, settings=settings, reference=REAL.name)

    def begin(self, first: First) -> ReleaseAction:
        """Chooses the phrase or the shift.

        Raises:
            SteeringError: there is no verdict, or a phrase has a token that is none.
        """
        check_vocabulary(self.refusal_ids, first)
        verdict, settings, config = first.known, self.settings, self.settings.release
        alpha = settings.alpha / 2 if config.halve_alpha and not verdict.unsafe else settings.alpha
        how = Contrast(form="difference", alpha=alpha)
        forced = self._prefix(first, alpha) if verdict.unsafe and config.force_prefix else ()
        return ReleaseAction(
            steps=len(forced) or settings.contrast_steps,
            config=config,
            unsafe=verdict.unsafe,
            forced=forced,
            contrast=ContrastAction(contrast=how, context=self.reference),
            modulation=Modulation(
                refusal_ids=self.refusal_ids,
                top_k=0 if config.whole_vocabulary else settings.top_k,
                amount=_amount(verdict, settings),
            ),
        )

    def _prefix(self, first: First, alpha: float) -> tuple[int, ...]:
        z = contrast(first.logits["real"], first.logits[self.reference], alpha, "difference")
        _, ids = choose_phrase(z, self.phrases, self.settings.top_k)
        return ids[: self.settings.contrast_steps]


def release_stage(settings: SafeCodeConfig, phrases: tuple[Phrase, ...]) -> ReleaseStage:
    """The stage with these phrases."""
    return ReleaseStage(
        contexts=(Context(name="noised", picture="noised", lifetime="steered"),),
        noise=picture_noise(settings),
        judged=True,
        settings=settings,
        phrases=phrases,
        refusal_ids=np.unique([token for _, ids in phrases for token in ids]).astype(np.int64),
    )


def choose_phrase(z: Logits, phrases: tuple[Phrase, ...], top_k: int) -> Phrase:
    """The phrase with a telling word among the `top_k` (0: all) likeliest, else the likeliest.

    A phrase is as likely as the sum of its tokens' probabilities in one row (V,): a bag of tokens at one position.
    """
    weights = np.exp(z - z.max(), dtype=np.float64)
    scores = [sum(weights[token] for token in ids) for _, ids in phrases]
    order = sorted(range(len(phrases)), key=lambda index: -scores[index])
    leading = [phrases[index] for index in order][: top_k or None]
    telling = (one for one in leading if any(word in one[0].lower() for word in PREFERRED))
    return next(telling, leading[0])


def _amount(verdict: Verdict, settings: SafeCodeConfig) -> float:
    """A factor on probabilities as what is added to logits."""
    if verdict.unsafe:
        return math.log(1 + settings.shift)
    factor = 1 - 0.5 * settings.shift
    return math.log(factor) if factor > 0 else -math.inf


def _only(z: Logits, token: int) -> Logits:
    out = np.full_like(z, -np.inf)
    out[token] = 0
    return out
