"""A table of ready text, as the terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecode_trt.cli import console

if TYPE_CHECKING:
    from rich.table import Table

    from safecode_trt.text_table import TextTable

__all__ = ["shown"]


def shown(table: TextTable) -> Table:
    """The table with numbers to the right."""
    from rich.table import Table

    made = Table(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        made.add_column(column, justify="right" if index and cells and cells[0][:1].isdigit() else "left")
    for row in table.rows:
        made.add_row(*map(console.printable, row))
    return made
