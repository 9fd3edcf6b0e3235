"""How the logits of several contexts become one token's: plans, policies, and the modes that users name."""

from safecode_trt.policy.base import (
    REAL,
    Candidate,
    Combined,
    Context,
    DiffusionNoise,
    Fallback,
    PixelNoise,
    Plan,
    Policy,
    PromptEdit,
    Steering,
    StepTrace,
    Verdict,
)
from safecode_trt.policy.modes import make_policy, mode_settings
from safecode_trt.policy.plain import PLAIN

__all__ = [
    "PLAIN",
    "REAL",
    "Candidate",
    "Combined",
    "Context",
    "DiffusionNoise",
    "Fallback",
    "PixelNoise",
    "Plan",
    "Policy",
    "PromptEdit",
    "Steering",
    "StepTrace",
    "Verdict",
    "make_policy",
    "mode_settings",
]
