"""Fits the temperature and threshold of a bundle's own judge to labelled items. Writes no bundle."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safecode_trt.calibration import Calibration, Reliability
from safecode_trt.config import DEFAULT_THRESHOLD
from safecode_trt.engine import Engine
from safecode_trt.errors import ConfigError, EvalError, SafeCodeError
from safecode_trt.eval.benchmarks import BENCHMARKS, read_benchmark
from safecode_trt.eval.benchmarks.files import picture_path, read_lines
from safecode_trt.eval.reliability import (
    calibration_error,
    fit_temperature,
    fit_threshold,
    reliability,
    tempered,
    unerring,
)
from safecode_trt.policy.verdict import read_margin
from safecode_trt.progress import Progress
from safecode_trt.records import from_dict, to_dict
from safecode_trt.runtime.image import open_picture
from safecode_trt.runtime.judges import Case
from safecode_trt.runtime.judges.own import SelfJudge
from safecode_trt.runtime.request import as_messages

__all__ = [
    "MIN_CLASS",
    "MIN_ITEMS",
    "LabelledItem",
    "Measured",
    "Outcome",
    "calibrate",
    "fit",
    "measure",
    "read_items",
    "score",
]

MIN_ITEMS, MIN_CLASS = 50, 10
Margins = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledItem:
    """One question to the judge, and whether helping is unsafe."""

    where: str
    prompt: str
    picture: Path | None
    unsafe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of a file of items; the picture's path is relative to the file's folder, null for none."""

    prompt: str
    unsafe: bool
    picture: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The judge's margins (logit of unsafe minus logit of safe) on some items, with their labels."""

    margins: Margins
    unsafe: Labels
    items_sha256: str
    least_mass: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A calibration, how little probability both verdict tokens had together, and the fit on items held out.

    On the items of an `unerring` judge no temperature is best, and it stays 1.
    """

    calibration: Calibration
    least_mass: float
    unerring: bool
    held_out_before: Reliability | None = None
    held_out_after: Reliability | None = None

    def curves(self) -> dict[str, Reliability]:
        """The reliability of everything that was measured, by a title."""
        curves = {"before": self.calibration.before, "after": self.calibration.after}
        if self.held_out_before is not None and self.held_out_after is not None:
            curves |= {"held out, before": self.held_out_before, "held out, after": self.held_out_after}
        return curves

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        data: dict[str, Any] = to_dict(self)
        return data


def read_items(source: str) -> list[LabelledItem]:
    """The items of a file of JSON lines, or of a benchmark's split named as BENCHMARK:FOLDER:SPLIT.

    Raises:
        EvalError: the file or the benchmark cannot be used, a picture is missing, or an item has no label.
    """
    name, mark, rest = source.partition(":")
    if mark and name in BENCHMARKS:
        folder, _, split = rest.rpartition(":")
        if not folder:
            raise EvalError(f"expected {name}:FOLDER:SPLIT, got {source!r}")
        found = read_benchmark(name, Path(folder), splits=[split]).items
        if any(item.side == "none" for item in found):
            raise EvalError(f"{name} {split} does not say what is unsafe; nothing can be fitted to it")
        return [
            LabelledItem(
                where=item.key, prompt=item.prompt, picture=item.picture, unsafe=item.side == "unsafe"
            )
            for item in found
        ]
    path = Path(source)
    if not path.exists():
        raise EvalError(
            f"{path} does not exist; expected a file of JSON lines, or BENCHMARK:FOLDER:SPLIT "
            f"with a benchmark out of {', '.join(BENCHMARKS)}"
        )
    return [_labelled(path.parent, record.data, record.where) for record in read_lines(path)]


def _labelled(folder: Path, data: object, where: str) -> LabelledItem:
    try:
        line = from_dict(_Line, data, where)
    except ConfigError as error:
        raise EvalError.of(error) from error
    picture = None if line.picture is None else picture_path(folder, line.picture, where)
    if picture is not None and not picture.is_file():
        raise EvalError(f"{where}: the picture {picture} does not exist")
    return LabelledItem(where=where, prompt=line.prompt, picture=picture, unsafe=line.unsafe)


def calibrate(
    engine: Engine,
    items: Sequence[LabelledItem],
    held_out: Sequence[LabelledItem],
    progress: Progress,
) -> Outcome:
    """Fits to `items`, and measures on them and on `held_out`, which may be empty.

    Raises:
        EvalError: the items are too few, altogether or of one class, or the judge has no margin for one.
    """
    unsafe = sum(item.unsafe for item in items)
    if len(items) < MIN_ITEMS or min(unsafe, len(items) - unsafe) < MIN_CLASS:
        raise EvalError(
            f"expected at least {MIN_ITEMS} items with {MIN_CLASS} of each class, "
            f"got {unsafe} unsafe and {len(items) - unsafe} safe"
        )
    measured = measure(engine, items, progress, step="judging the items")
    found = fit(measured)
    before = after = None
    if held_out:
        unseen = measure(engine, held_out, progress, step="judging those held out")
        before = score(unseen)
        after = score(unseen, temperature=found.temperature, threshold=found.threshold)
    return Outcome(
        calibration=found,
        least_mass=measured.least_mass,
        unerring=unerring(measured.margins, measured.unsafe),
        held_out_before=before,
        held_out_after=after,
    )


def measure(engine: Engine, items: Sequence[LabelledItem], progress: Progress, *, step: str) -> Measured:
    """Asks the bundle's judge about every item.

    Raises:
        EvalError: it has no finite margin for one, which the message names.
    """
    defaults = engine.bundle.manifest.safecode
    digest = hashlib.sha256()
    margins, masses = [], []
    for done, item in enumerate(items, 1):
        picture = b"" if item.picture is None else item.picture.read_bytes()
        for part in (item.prompt.encode(), picture, b"unsafe" if item.unsafe else b"safe"):
            digest.update(len(part).to_bytes(8, "little") + part)
        try:
            images = [open_picture(picture)] if picture else []
            case = Case(model=engine.model, messages=as_messages(item.prompt, len(images)), images=images)
            margin, mass = read_margin(SelfJudge().logits(case), defaults)
        except SafeCodeError as error:
            raise EvalError.of(error, where=item.where) from error
        if not math.isfinite(margin):
            raise EvalError(
                f"{item.where}: the judge excludes one of its two verdicts; nothing can be fitted"
            )
        margins.append(margin)
        masses.append(mass)
        progress(step, done, len(items))
    return Measured(
        margins=np.array(margins),
        unsafe=np.array([item.unsafe for item in items], np.bool_),
        items_sha256=digest.hexdigest(),
        least_mass=min(masses),
    )


def fit(measured: Measured) -> Calibration:
    """The temperature that explains the labels best and the threshold with the best mean of both recalls there.

    Raises:
        EvalError: there is only one class.
    """
    margins, unsafe = measured.margins, measured.unsafe
    temperature = fit_temperature(margins, unsafe)
    threshold = fit_threshold(tempered(margins, temperature), unsafe)
    return Calibration(
        judge="self",
        temperature=temperature,
        threshold=threshold,
        items=len(margins),
        unsafe_items=int(unsafe.sum()),
        items_sha256=measured.items_sha256,
        before=score(measured),
        after=score(measured, temperature=temperature, threshold=threshold),
    )


def score(
    measured: Measured, *, temperature: float = 1.0, threshold: float = DEFAULT_THRESHOLD
) -> Reliability:
    """How far P(unsafe) at a temperature, and verdicts at a threshold, can be trusted on these items."""
    belief, unsafe = tempered(measured.margins, temperature), measured.unsafe
    return Reliability(
        accuracy=float(((belief >= threshold) == unsafe).mean()),
        calibration_error=calibration_error(belief, unsafe),
        bins=reliability(belief, unsafe),
    )
