"""The answers that a report shows: the worst of every mode, with what the first mode said to the same item."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from safecode_trt.errors import PictureError
from safecode_trt.eval.benchmarks import EvalItem
from safecode_trt.eval.metrics import Judged
from safecode_trt.eval.results import FAILED, Result
from safecode_trt.runtime.image import open_picture

__all__ = ["Case", "Cases", "worst_cases"]

THUMBNAIL = 144
TEXT = 700  # characters of a request or an answer
# What is wrong, the gravest first, and how many of it are shown.
KINDS = (("unsafe answer", 8), ("wrong refusal", 8), ("garbled", 4), ("not judged", 4), ("no answer", 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An answer that went wrong. `compared` is the first mode's answer to the same item, None if it is this mode."""

    kind: str
    key: str
    category: str
    request: str
    answer: str
    compared: str | None
    p_unsafe: float | None
    thumbnail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """The worst answers of one mode, and how many there are of every kind; `first` is the mode compared with."""

    mode: str
    first: str
    counts: tuple[tuple[str, int], ...]
    cases: tuple[Case, ...]


def worst_cases(
    modes: Sequence[str],
    results: Sequence[Result],
    judged: Mapping[tuple[str, ...], Judged],
    items: Mapping[str, EvalItem],
) -> tuple[Cases, ...]:
    """The worst answers of every mode that has any, by kind, and within one the surest verdicts first."""
    first = {result.key: result.answer for result in results if result.mode == modes[0]}
    thumbnail = _Thumbnails()
    found = []
    for mode in modes:
        wrong: dict[str, list[Result]] = {kind: [] for kind, _ in KINDS}
        for result in results:
            if result.mode == mode and (kind := _kind(judged[result.identity])):
                wrong[kind].append(result)
        cases = tuple(
            _case(kind, result, items[result.key], first if mode != modes[0] else {}, thumbnail)
            for kind, shown in KINDS
            for result in sorted(wrong[kind], key=_surest)[:shown]
        )
        counts = tuple((kind, len(wrong[kind])) for kind, _ in KINDS if wrong[kind])
        if cases:
            found.append(Cases(mode=mode, first=modes[0], counts=counts, cases=cases))
    return tuple(found)


def _kind(judged: Judged) -> str | None:
    if judged.outcome == "failed":
        return "no answer"
    if judged.outcome == "unparsed":
        return "not judged"
    if judged.outcome == "garbled":
        return "garbled"
    if judged.attacked:
        return "unsafe answer"
    return "wrong refusal" if judged.side == "safe" and judged.refused else None


def _surest(result: Result) -> tuple[float, str]:
    """Verdicts that misled most come first: a sure "safe" before an unsafe answer, a sure "unsafe" before a refusal."""
    belief = 0.5 if result.p_unsafe is None else result.p_unsafe
    return (belief if result.side == "unsafe" else 1 - belief), result.key


def _case(
    kind: str,
    result: Result,
    item: EvalItem,
    first: Mapping[str, str],
    thumbnail: Callable[[Path | None], str | None],
) -> Case:
    compared = first.get(result.key)
    return Case(
        kind=kind,
        key=result.key,
        category=result.category,
        request=_short(item.prompt),
        answer=_short(result.failure or "" if result.finish_reason == FAILED else result.answer),
        compared=None if compared is None else _short(compared),
        p_unsafe=result.p_unsafe,
        thumbnail=thumbnail(item.picture),
    )


def _short(text: str) -> str:
    return text if len(text) <= TEXT else text[:TEXT].rstrip() + " …"


class _Thumbnails:
    """Small pictures as data URLs, each made once; None where there is no picture, or none that can be read."""

    def __init__(self) -> None:
        self._made: dict[Path, str | None] = {}

    def __call__(self, path: Path | None) -> str | None:
        if path is None:
            return None
        if path not in self._made:
            self._made[path] = _thumbnail(path)
        return self._made[path]


def _thumbnail(path: Path) -> str | None:
    try:
        picture = open_picture(path)
    except PictureError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
