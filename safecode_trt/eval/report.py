"""The report of an evaluation: report.html, one file that loads nothing, and report.md. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from safecode_trt.config import PAPER
from safecode_trt.eval.arms import BASE_MODE
from safecode_trt.eval.metrics import Rate
from safecode_trt.eval.report_cases import Cases
from safecode_trt.eval.report_tables import modes, percent, report_tables, verdict_groups
from safecode_trt.eval.summary import ArmSummary, Summary
from safecode_trt.records import to_dict
from safecode_trt.text_table import markdown

__all__ = ["facts", "findings", "html_report", "markdown_report", "warnings"]

Facts = list[tuple[str, str]]
TITLE_MODES = 4
READABLE = 0.9  # below this share of well-formed answers a reader is warned


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A share and its interval on an axis, in percent of the axis; `text` says it in words."""

    at: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the plot of modes: unsafe answers and wrong refusals of an arm, where it has them.

    `garbled`: too few answers are well-formed for the figures to mean much.
    """

    name: str
    ablation: bool
    garbled: bool
    unsafe: Whisker | None
    refusals: Whisker | None


def html_report(summary: Summary, cases: Sequence[Cases]) -> str:
    """The page; model text is escaped."""
    environment = Environment(
        loader=PackageLoader("safecode_trt.eval"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["interval"] = _interval
    top = _axis_end(summary)
    template = environment.get_template("report.html.jinja")
    tables = report_tables(summary)
    return template.render(
        title=_title(summary),
        findings=findings(summary),
        warnings=warnings(summary),
        first=tables[:1],
        tables=tables[1:],
        rows=[_row(arm, top) for arm in summary.arms],
        ticks=[(share, 100 * share / top) for share in _ticks(top)],
        reliability=list(_reliability(summary)),
        slowest=max((arm.cost.seconds_median for arm in summary.arms if arm.cost), default=0.0),
        arms=summary.arms,
        cases=cases,
        opened=BASE_MODE
        if any(group.mode == BASE_MODE for group in cases)
        else cases[-1].mode
        if cases
        else "",
        facts=facts(summary),
    )


def markdown_report(summary: Summary) -> str:
    """The page's figures without its pictures."""
    lines = [f"# {_title(summary)}", "", *findings(summary), ""]
    lines += [f"- {line}" for line in warnings(summary)]
    tables = "\n".join(markdown(table) for table in report_tables(summary))
    settings = "\n".join(f"- {name}: {value}" for name, value in facts(summary))
    return "\n".join(lines) + f"\n\n{tables}\n## Settings and provenance\n\n{settings}\n"


def findings(summary: Summary) -> list[str]:
    """What the table of modes says of the default mode, or else of the last, against the first one."""
    shown = modes(summary)
    if not shown:
        return ["No mode has answered anything."]
    first = shown[0]
    arm = next((arm for arm in shown if arm.name == BASE_MODE), shown[-1])
    figures = (
        ("unsafe answers", arm.scores.attack_success, first.scores.attack_success),
        ("wrong refusals", arm.scores.over_refusal, first.scores.over_refusal),
        ("well-formed", arm.scores.well_formed, first.scores.well_formed),
    )
    said = [_against(name, own, None if arm is first else other) for name, own, other in figures]
    against = "" if arm is first else f" against {first.name}"
    return [f"{arm.name}{against}: {', '.join(part for part in said if part)}."]


def warnings(summary: Summary) -> list[str]:
    """What a reader must know before believing a figure."""
    found = list(summary.notes)
    if summary.part:
        found.append(f"this is part {summary.part} of the items only")
    for arm in summary.arms:
        answered = arm.scores.items
        if answered < summary.items:
            found.append(f"{arm.name}: {answered} of {summary.items} items are answered")
        counts = {
            "replies are the fail-safe's": arm.fallbacks,
            "items have no answer": arm.failures,
        }
        for what, reasons in counts.items():
            for reason, count in list(reasons.items())[:3]:
                found.append(f"{arm.name}: {count} {what} ({reason})")
        if _garbled(arm):
            well = 100 * (arm.scores.well_formed.share or 0.0)
            found.append(
                f"{arm.name}: only {well:.0f} % of its answers are well-formed, the rest is no use to anybody"
            )
        if unparsed := arm.outcomes.get("unparsed", 0):
            found.append(f"{arm.name}: the judge's words about {unparsed} answers could not be read")
    return found


def facts(summary: Summary) -> Facts:
    """Settings and provenance by name."""
    origin, sampling = summary.provenance, asdict(summary.provenance.sampling)
    machine = origin.machine
    listed = [
        ("command", origin.command),
        ("benchmark", f"{summary.benchmark}, {', '.join(summary.splits)}"),
        ("items", f"{summary.items} ({summary.unsafe} unsafe, {summary.safe} safe)"),
        ("verdicts by", origin.judge),
        ("answers judged by", summary.answer_judge),
        ("bundle", f"{origin.bundle}, {origin.model_type}, {origin.precision}"),
        ("bundle's digest", origin.bundle_digest),
        ("checkpoint's SHA-256", origin.source_sha256),
        ("sampling", ", ".join(f"{name} {value}" for name, value in sampling.items())),
        ("system text", origin.system or "none"),
        ("words around the requests", origin.templates),
        ("machine", f"{machine.cpu}, {machine.cores} cores, threads: {machine.threads or 'one per core'}"),
        (
            "versions",
            f"safecode-trt {machine.safecode_trt}, Python {machine.python}, "
            f"ONNX Runtime {machine.onnxruntime or 'none'}, backend {machine.backend}",
        ),
        ("written", machine.date),
    ]
    for arm in summary.arms:
        listed.append((f"mode {arm.name}", f"run {arm.run} by {arm.backend}; {_settings(arm, summary)}"))
    return listed


def _garbled(arm: ArmSummary) -> bool:
    share = arm.scores.well_formed.share
    return share is not None and share < READABLE


def _settings(arm: ArmSummary, summary: Summary) -> str:
    """How an arm's settings differ from its base's, or from the paper's."""
    if arm.settings is None:
        return "nothing is steered"
    base = next((other for other in summary.arms if other.name == arm.base), None)
    origin, known = (base.name, base.settings or PAPER) if base else ("the paper", PAPER)
    shown, others = _flat(to_dict(arm.settings)), _flat(to_dict(known))
    changed = [f"{name} {value}" for name, value in shown.items() if value != others[name]]
    return f"as {origin}" + (f", but {', '.join(changed)}" if changed else "")


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _title(summary: Summary) -> str:
    names = [arm.name for arm in modes(summary)]
    listed = ", ".join(names) if len(names) <= TITLE_MODES else f"{len(names)} modes"
    return f"{summary.benchmark} ({', '.join(summary.splits)}): {listed}"


def _against(name: str, rate: Rate, first: Rate | None) -> str | None:
    if rate.share is None:
        return None
    instead = "" if first is None or first.share is None else f" instead of {100 * first.share:.1f} %"
    return f"{name} {100 * rate.share:.1f} %{instead}"


def _interval(cell: str) -> tuple[str, str]:
    """A cell as its figure and its interval."""
    figure, mark, rest = cell.partition(" [")
    return figure, f"[{rest}" if mark else ""


def _axis_end(summary: Summary) -> float:
    highs = [
        rate.high
        for arm in summary.arms
        for rate in (arm.scores.attack_success, arm.scores.over_refusal)
        if rate.high is not None
    ]
    largest = max(highs, default=1.0)
    return next(end for end in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0) if largest <= end + 1e-9)


def _ticks(top: float) -> list[float]:
    return [top * part / 5 for part in range(6)]


def _row(arm: ArmSummary, top: float) -> Row:
    return Row(
        name=arm.name,
        ablation=arm.base is not None,
        garbled=_garbled(arm),
        unsafe=_whisker(arm.scores.attack_success, top),
        refusals=_whisker(arm.scores.over_refusal, top),
    )


def _whisker(rate: Rate, top: float) -> Whisker | None:
    text = percent(rate)
    if text is None or rate.share is None or rate.low is None or rate.high is None:
        return None
    return Whisker(at=100 * rate.share / top, low=100 * rate.low / top, high=100 * rate.high / top, text=text)


def _reliability(summary: Summary) -> Iterator[dict[str, Any]]:
    """A curve for all verdicts that differ."""
    for names, verdicts in verdict_groups(modes(summary)):
        filled = [entry for entry in verdicts.reliability if entry.count]
        most = max(entry.count for entry in filled)
        yield {
            "name": names,
            "error": verdicts.calibration_error,
            "points": [(entry, 2 + 7 * (entry.count / most) ** 0.5) for entry in filled],
        }
