"""The tables of an evaluation's report, from its summary. A column or table that nothing is known about is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from safecode_trt.eval.compare import FIGURES, Figure
from safecode_trt.eval.metrics import Difference, Rate, Scores
from safecode_trt.eval.summary import ArmSummary, Summary, Verdicts
from safecode_trt.text_table import TextTable

__all__ = [
    "category_table",
    "difference_table",
    "modes",
    "modes_table",
    "percent",
    "report_tables",
    "short_table",
    "verdict_groups",
    "verdict_table",
]

NOTHING = "–"
FIGURE_NAMES: dict[Figure, str] = {
    "right": "right on both sides",
    "attack_success": "unsafe answers",
    "over_refusal": "wrong refusals",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """A column and what it says of an arm; None where it says nothing."""

    name: str
    say: Callable[[ArmSummary], str | None]


def percent(rate: Rate) -> str | None:
    """A share with its interval, None where there is nothing."""
    if rate.share is None or rate.low is None or rate.high is None:
        return None
    return f"{100 * rate.share:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def modes(summary: Summary) -> tuple[ArmSummary, ...]:
    """The arms that are modes, and no ablations."""
    return tuple(arm for arm in summary.arms if arm.base is None)


def short_table(summary: Summary) -> TextTable:
    """What fits into a terminal: every arm's figures without what the page adds."""
    whole = modes_table("Modes", summary.arms)
    left_out = ("safe right %", "unsafe right %", "tokens", "ms to first token")
    kept = [number for number, name in enumerate(whole.columns) if name not in left_out]
    return TextTable(
        title=whole.title,
        columns=tuple(whole.columns[number] for number in kept),
        rows=tuple(tuple(row[number] for number in kept) for row in whole.rows),
    )


def report_tables(summary: Summary) -> list[TextTable]:
    """All tables in the order of the report."""
    ablations = [arm for arm in summary.arms if arm.base is not None]
    tables = [
        modes_table("Modes", modes(summary)),
        *([modes_table("Without one part each", ablations)] if ablations else []),
        difference_table(summary),
        verdict_table(summary),
        category_table(summary),
    ]
    return [table for table in tables if table.rows]


def modes_table(title: str, arms: Sequence[ArmSummary]) -> TextTable:
    """One row for each arm: what it does, what it costs, what went wrong."""
    columns = (
        _rate("unsafe answers %", lambda scores: scores.attack_success),
        _rate("wrong refusals %", lambda scores: scores.over_refusal),
        _rate("well-formed %", lambda scores: scores.well_formed),
        _rate("safe right %", lambda scores: scores.safe_right),
        _rate("unsafe right %", lambda scores: scores.unsafe_right),
        _Column(name="average %", say=lambda arm: _share(arm.scores.average)),
        _Column(name="exact %", say=lambda arm: percent(arm.exact)),
        _Column(name="tokens", say=lambda arm: f"{arm.cost.tokens_mean:.1f}" if arm.cost else None),
        _Column(name="ms a reply", say=lambda arm: _ms(arm.cost.seconds_median) if arm.cost else None),
        _Column(
            name="ms to first token", say=lambda arm: _ms(arm.cost.first_token_median) if arm.cost else None
        ),
        _Column(name="fallbacks", say=lambda arm: _number(sum(arm.fallbacks.values()))),
        _Column(name="unparsed", say=lambda arm: _number(arm.outcomes.get("unparsed", 0))),
        _Column(name="failed", say=lambda arm: _number(arm.outcomes.get("failed", 0))),
    )
    return _table(title, "mode", columns, arms)


def verdict_groups(arms: Sequence[ArmSummary]) -> list[tuple[str, Verdicts]]:
    """The different verdicts, each with the names of the arms that share them."""
    groups: list[tuple[list[str], Verdicts]] = []
    for arm in arms:
        if arm.verdicts is None:
            continue
        names = next((names for names, verdicts in groups if verdicts == arm.verdicts), None)
        if names is None:
            groups.append(([arm.name], arm.verdicts))
        else:
            names.append(arm.name)
    return [(", ".join(names), verdicts) for names, verdicts in groups]


def verdict_table(summary: Summary) -> TextTable:
    """How far the verdicts can be trusted."""
    rows = tuple(
        (
            names,
            percent(verdicts.scores.accuracy) or NOTHING,
            percent(verdicts.scores.safe_recall) or NOTHING,
            percent(verdicts.scores.unsafe_recall) or NOTHING,
            f"{verdicts.calibration_error:.3f}",
            f"{verdicts.brier:.3f}",
            NOTHING if verdicts.correlation is None else f"{verdicts.correlation:.2f}",
        )
        for names, verdicts in verdict_groups(modes(summary))
    )
    columns = ("mode", "right %", "of the safe %", "of the unsafe %", "ECE", "Brier", "with votes")
    return TextTable(title="Verdicts", columns=columns, rows=rows)


def difference_table(summary: Summary) -> TextTable:
    """Paired differences in percentage points with 95 % intervals, one row for each pair of arms."""
    pairs = dict.fromkeys((entry.second, entry.first) for entry in summary.comparisons)
    known = {(entry.second, entry.first, entry.figure): entry.difference for entry in summary.comparisons}
    used = [figure for figure in FIGURES if any(figure == entry.figure for entry in summary.comparisons)]
    rows = tuple(
        (
            f"{second} against {first}",
            *(_points(known.get((second, first, figure))) for figure in used),
        )
        for second, first in pairs
    )
    columns = ("modes", *(FIGURE_NAMES[figure] for figure in used))
    return TextTable(title="Differences on the same items, in points", columns=columns, rows=rows)


def category_table(summary: Summary) -> TextTable:
    """Unsafe answers and wrong refusals of every mode by category."""
    shown = modes(summary)
    names = sorted({name for arm in shown for name in arm.categories})
    figures: tuple[tuple[str, Callable[[Scores], Rate]], ...] = (
        ("unsafe answers %", lambda scores: scores.attack_success),
        ("wrong refusals %", lambda scores: scores.over_refusal),
    )
    used = [
        (name, pick)
        for name, pick in figures
        if any(pick(scores).total for arm in shown for scores in arm.categories.values())
    ]
    rows = []
    for category in names:
        scores = [arm.categories.get(category) for arm in shown]
        cells = [
            NOTHING if entry is None else percent(pick(entry)) or NOTHING
            for _, pick in used
            for entry in scores
        ]
        rows.append((category, str(max(entry.items for entry in scores if entry)), *cells))
    columns = ("category", "items", *(f"{arm.name}: {name}" for name, _ in used for arm in shown))
    single = len(names) < 2 or not used
    return TextTable(title="By category", columns=columns, rows=() if single else tuple(rows))


def _rate(name: str, pick: Callable[[Scores], Rate]) -> _Column:
    return _Column(name=name, say=lambda arm: percent(pick(arm.scores)))


def _table(title: str, first: str, columns: Iterable[_Column], arms: Sequence[ArmSummary]) -> TextTable:
    said = [(column.name, [column.say(arm) for arm in arms]) for column in columns]
    used = [(name, cells) for name, cells in said if any(cell is not None for cell in cells)]
    rows = tuple(
        (arm.name, *(cells[number] or NOTHING for _, cells in used)) for number, arm in enumerate(arms)
    )
    return TextTable(title=title, columns=(first, *(name for name, _ in used)), rows=rows)


def _share(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _number(count: int) -> str | None:
    return str(count) if count else None


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:.0f}"


def _points(entry: Difference | None) -> str:
    if entry is None:
        return NOTHING
    shown = [f"{100 * value:+.1f}" for value in (entry.difference, entry.low, entry.high)]
    middle, low, high = (text[1:] if float(text) == 0 else text for text in shown)
    return f"{middle} [{low}, {high}]"
