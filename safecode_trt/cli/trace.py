"""A reply's trace as tables on stderr; no verb of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from safecode_trt.cli import console

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from safecode_trt.policy.base import StepTrace
    from safecode_trt.runtime import Reply

__all__ = ["print_trace"]

SHOWN = 8


def print_trace(tokenizer: Tokenizer, reply: Reply) -> None:
    """One table per steered step: the leading tokens and what each stage did to them."""

    def word(token_id: int) -> str:
        return repr(str(tokenizer.decode([token_id], skip_special_tokens=False)))

    for step in reply.trace:
        chosen = reply.token_ids[step.step] if step.step < len(reply.token_ids) else None
        _print_step(step, chosen, word)


def _print_step(step: StepTrace, chosen: int | None, word: Callable[[int], str]) -> None:
    from rich.table import Table

    table = Table(title=f"step {step.step + 1}", title_justify="left")
    table.add_column("token")
    for name in ("picture", "reference", "contrast", "shift", "final"):
        table.add_column(name, justify="right")
    for candidate in step.candidates[:SHOWN]:
        values = (
            candidate.z_real,
            candidate.z_reference,
            candidate.z_contrast,
            candidate.shift,
            candidate.z_final,
        )
        table.add_row(
            word(candidate.token_id),
            *("" if value is None else f"{value:.2f}" for value in values),
            style="bold" if candidate.token_id == chosen else None,
        )
    console.stderr().print(table)
