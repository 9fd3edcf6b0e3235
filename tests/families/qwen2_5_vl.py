"""Qwen2.5-VL: Qwen2-VL with windows, some of them not full."""

from __future__ import annotations

from tests.families import FamilyCase
from tests.families.qwen2_vl import processed, rotary, token_ids

CASE = FamilyCase(
    model_type="qwen2_5_vl",
    processed=processed,
    token_ids=token_ids,
    rotary=rotary,
    sizes=((60, 100), (110, 50)),
)
