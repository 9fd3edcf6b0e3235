"""Tables of ready text: the command line, the tools and the reports print them each in their way."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TextTable", "markdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of ready text; every column but the first is meant to be right-justified."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(table: TextTable) -> str:
    """The table in Markdown, with its title as a heading."""
    rule = ("---", *["---:"] * (len(table.columns) - 1))
    lines = [_line(table.columns), f"| {' | '.join(rule)} |", *map(_line, table.rows)]
    return f"## {table.title}\n\n" + "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    """A row; what would end a cell is escaped."""
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"
