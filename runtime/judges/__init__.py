"""Who says whether helping is safe: the bundle's own model, another at an address, a file, several together."""

from safecode_trt.runtime.judges.judge import Case, Judge, Keyed, case_key
from safecode_trt.runtime.judges.make import FORMS, JudgeConfig, make_judge, verdict_parts

__all__ = ["FORMS", "Case", "Judge", "JudgeConfig", "Keyed", "case_key", "make_judge", "verdict_parts"]
