"""Finds the checkpoint that `--model` names: a folder, or a model on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import INDEX, SINGLE, read_index
from safecode_trt.export.hub_download import CONFIG, Download, Report
from safecode_trt.export.package import REQUIRED
from safecode_trt.manifest import Source

__all__ = ["find_checkpoint"]

NAME = re.compile(r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
MAIN = "main"


def find_checkpoint(
    model: str | Path, *, offline: bool = False, report: Report | None = None
) -> tuple[Path, Source | None]:
    """The folder of a checkpoint, and where on the hub it comes from; None for a folder of the user's own.

    A `Path` is a folder. A text is a folder if there is one of that name, otherwise a name on the hub:
    `owner/name` or `name`, with an optional `@` and a branch, tag or commit. `offline` takes what is in the cache.
    `report` gets the megabytes of weights that have arrived.

    Raises:
        CheckpointError: there is no such folder and no such model, it may not be downloaded, has no safetensors
            weights, does not fit on the disk, or did not arrive whole.
    """
    if Path(model).is_dir() and str(model):
        return Path(model), None
    asked = None if isinstance(model, Path) else NAME.fullmatch(model)
    if asked is None or Path(model).exists():
        raise CheckpointError(
            f"{str(model)!r} is not a folder; expected the folder of a Hugging Face checkpoint, or a model's name on "
            "the hub: owner/name or owner/name@revision"
        )
    name, revision = asked["name"], asked["revision"] or MAIN
    # Otherwise every request names this machine's software, and a list of programs is fetched to compare it with.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    if offline or constants.is_offline_mode():
        folder = _cached_checkpoint(name, revision)
    else:
        folder = Download(name, revision, report or (lambda step, done, total: None)).run()
    return folder, Source(name=name, revision=revision, commit=folder.name)


def _cached_checkpoint(name: str, revision: str) -> Path:
    """The folder of a model in the cache, without a request.

    Raises:
        CheckpointError: the cache does not have it, or not all of it.
    """
    without = "and --offline or HF_HUB_OFFLINE forbids asking the hub; run the export once without them"
    found = try_to_load_from_cache(name, CONFIG, revision=revision)
    if not isinstance(found, str):
        raise CheckpointError(
            f"there is no folder {name!r}, the cache {constants.HF_HUB_CACHE} has no {name}@{revision}, {without}"
        )
    folder = Path(found).parent
    single = (folder / SINGLE).is_file() or not (folder / INDEX).is_file()
    weights = {SINGLE} if single else set(read_index(folder / INDEX).values())
    for file in (*REQUIRED, *sorted(weights)):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} in the cache has no {file}, {without}")
    return folder
