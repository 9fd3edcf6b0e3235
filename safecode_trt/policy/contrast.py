"""Contrasts: what the picture or a text in the prompt adds to the logits, made larger. Knows nothing of verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from safecode_trt.config import Prompts, SafeCodeConfig
from safecode_trt.ops.fused import FusedStep
from safecode_trt.ops.reference import ContrastForm, Ids, Logits, contrast, plausible
from safecode_trt.policy.base import REAL, UNCHANGED, Context, DiffusionNoise, Noise, PixelNoise, PromptEdit
from safecode_trt.policy.stage import Action, First, Stage, Step

__all__ = [
    "Contrast",
    "ContrastAction",
    "ContrastStage",
    "picture_contrast",
    "picture_noise",
    "principle_contrast",
    "reverse_contrast",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The contrast of arXiv 2509.19212 with, for beta above 0, the plausibility mask of arXiv 2311.16922."""

    form: ContrastForm
    alpha: float
    beta: float = 0.0

    def apply(self, z: Logits, z_reference: Logits, exempt_ids: Ids, real: Logits | None = None) -> Logits:
        """One row from two (V,); tokens that are implausible in `real`, by default z, are at -inf.

        Those of `exempt_ids` are not.
        """
        if self.beta == 0:
            return contrast(z, z_reference, self.alpha, self.form)
        kept = plausible(z if real is None else real, self.beta)
        kept[exempt_ids] = True
        ids = np.flatnonzero(kept)
        out = np.full_like(z, -np.inf)
        out[ids] = contrast(z[ids], z_reference[ids], self.alpha, self.form)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastAction(Action):
    """The contrast with the row of one context."""

    contrast: Contrast
    context: str

    def fused(self, before: FusedStep, contexts: Sequence[str]) -> FusedStep | None:
        """A device contrasts once, before it shifts, and the first row with the second."""
        settings, how = before.settings, self.contrast
        if settings.form is not None or settings.shift_top_k or list(contexts[1:2]) != [self.context]:
            return None
        return replace(before, settings=replace(settings, form=how.form, alpha=how.alpha, beta=how.beta))

    def apply(self, step: Step) -> Step:
        """z contrasted; the mask is that of the real row."""
        reference = step.rows[self.context]
        z = self.contrast.apply(step.z, reference, step.spared, step.rows["real"])
        return replace(step, z=z, contrasted=z, reference=reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastStage(Stage):
    """A contrast with the one context that it needs, for so many steps, None for all."""

    contrast: Contrast
    steps: int | None

    def without_pictures(self) -> ContrastStage | None:
        """None where the two rows differ in the picture only: without one they are the same."""
        (context,) = self.contexts
        unseen = not self.prompts.get(context.prompt, UNCHANGED).pictures
        return None if context.picture != REAL.picture or unseen else self

    def begin(self, first: First) -> ContrastAction:
        """Needs no logits."""
        return ContrastAction(steps=self.steps, contrast=self.contrast, context=self.contexts[0].name)


def picture_contrast(settings: SafeCodeConfig) -> ContrastStage:
    """The real picture against one that shows less: noise on it, a fixed noise, or none at all."""
    how = Contrast(form=settings.contrast, alpha=settings.alpha, beta=settings.beta)
    if settings.reference == "absent":
        return ContrastStage(
            contexts=(Context(name="unseen", prompt="unseen", lifetime="steered"),),
            prompts={"unseen": PromptEdit(pictures=False)},
            contrast=how,
            steps=settings.contrast_steps,
        )
    return ContrastStage(
        contexts=(Context(name="noised", picture=settings.reference, lifetime="steered"),),
        noise=picture_noise(settings) if settings.reference == "noised" else None,
        contrast=how,
        steps=settings.contrast_steps,
    )


def picture_noise(settings: SafeCodeConfig) -> Noise:
    """The noise of the noised picture."""
    if settings.noise_step is not None:
        return DiffusionNoise(step=settings.noise_step)
    return PixelNoise(sigma=settings.sigma)


def reverse_contrast(settings: SafeCodeConfig, prompts: Prompts) -> ContrastStage:
    """ROSE (arXiv 2402.11889): z - guidance z', where z' has read a system text that asks for the opposite."""
    return ContrastStage(
        contexts=(Context(name="reverse", prompt="reverse", lifetime="steered"),),
        prompts={"reverse": PromptEdit(system=prompts.reverse)},
        contrast=Contrast(form="difference", alpha=settings.guidance),
        steps=settings.guidance_steps,
    )


def principle_contrast(settings: SafeCodeConfig, prompts: Prompts) -> ContrastStage:
    """z + guidance (z - z'), where z has read a safety principle and z' has not.

    This is CoCA (arXiv 2409.11365), and classifier-free guidance (arXiv 2306.17806) with gamma = 1 + guidance.
    """
    return ContrastStage(
        contexts=(Context(name="bare", prompt="bare", lifetime="steered"),),
        prompts={"request": PromptEdit(system=prompts.principle)},
        contrast=Contrast(form="vcd", alpha=settings.guidance),
        steps=settings.guidance_steps,
    )
