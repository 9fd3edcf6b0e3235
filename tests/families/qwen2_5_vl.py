"""Qwen2.5-VL: Qwen2-VL with windows, some of them not full."""

from __future__ import annotations

from tests.families import FamilyCase
from tests.families.qwen2_vl import processed, rotary, token_ids

CASE = FamilyCase(
    model_type="qwen2_5_vl",
    processed=processed,
    token_ids=token_ids,
    rotary=rotary,
    # Of 6 x 4, 3 x 7 and 2 x 2 tokens: four windows, three in a row, and a single one.
    sizes=((60, 100), (110, 50), (20, 20)),
)
