"""--trace, --audit and --store-images: what run and chat write down about their replies; no verb of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from safecode_trt.cli.options import PATH, gather
from safecode_trt.errors import ConfigError

if TYPE_CHECKING:
    from safecode_trt.runtime.picture_file import PictureFile
    from safecode_trt.trace.reply_record import ReplyRecord

__all__ = ["Recorder", "Recording", "recording_options"]

OPTIONS = (
    click.option(
        "--trace", type=PATH, metavar="FILE", help="Append each reply with its steered steps; see explain."
    ),
    click.option("--audit", type=PATH, metavar="FILE", help="Append each reply without its steps."),
    click.option(
        "--store-images", type=PATH, metavar="DIR", help="Keep the pictures, named by their SHA-256."
    ),
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Where the caller wants replies and their pictures to be written down."""

    trace: Path | None
    audit: Path | None
    store_images: Path | None

    def open(self) -> Recorder:
        """Opens the files, so that what cannot be written is known before any work."""
        return Recorder(self)


class Recorder:
    """The opened files; to be used in a `with`."""

    def __init__(self, recording: Recording) -> None:
        from safecode_trt.runtime.picture_file import PictureStore
        from safecode_trt.trace.record_file import RecordFile

        with ExitStack() as opened:
            self._files = []
            for path, steps in ((recording.trace, True), (recording.audit, False)):
                if path:
                    file = RecordFile(path, steps=steps)
                    opened.callback(file.close)
                    self._files.append(file)
            self._store = PictureStore(recording.store_images) if recording.store_images else None
            self._opened = opened.pop_all()

    def write(self, record: ReplyRecord, pictures: Sequence[PictureFile]) -> None:
        """Keeps the pictures first: a line never names one that is not there yet."""
        if self._store:
            for picture in pictures:
                self._store.keep(picture)
        for file in self._files:
            file.write(record)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def _recording(trace: Path | None, audit: Path | None, store_images: Path | None) -> Recording:
    if store_images and not (trace or audit):
        raise ConfigError(
            "needs a file whose lines say what a picture belongs to",
            field="store_images",
            fix="pass --trace or --audit",
        )
    if trace and trace == audit:
        raise ConfigError(f"must be another file than that of --audit, got {trace} for both", field="trace")
    return Recording(trace=trace, audit=audit, store_images=store_images)


recording_options = gather("recording", _recording, OPTIONS)
"""Adds the options; the command receives `recording`, a Recording."""
