"""Stage 1 of SafeCoDe: what the picture itself adds to the logits. Knows nothing of verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safecode_trt.ops.reference import ContrastForm, Ids, Logits, contrast, plausible

__all__ = ["Contrast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The contrast of arXiv 2509.19212 with, for beta above 0, the plausibility mask of arXiv 2311.16922."""

    form: ContrastForm
    alpha: float
    beta: float

    def apply(self, z_real: Logits, z_reference: Logits, exempt_ids: Ids) -> Logits:
        """One row from two (V,); implausible tokens are at -inf, except those of `exempt_ids`."""
        if self.beta == 0:
            return contrast(z_real, z_reference, self.alpha, self.form)
        kept = plausible(z_real, self.beta)
        kept[exempt_ids] = True
        ids = np.flatnonzero(kept)
        out = np.full_like(z_real, -np.inf)
        out[ids] = contrast(z_real[ids], z_reference[ids], self.alpha, self.form)
        return out
