"""Downloads a model from the Hugging Face Hub into the cache of its libraries.

Only the files that an export reads come. Settings come first and weights last, so that a cached model with all its
weights is whole.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import tqdm

from safecode_trt.bundle import file_entry
from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import INDEX, SINGLE, conversion_command, is_pickle, read_index
from safecode_trt.export.defaults import SAFECODE_JSON
from safecode_trt.export.hub_errors import explained
from safecode_trt.export.package import OPTIONAL, REQUIRED

__all__ = ["CONFIG", "Download", "Report"]

Report = Callable[[str, int, int], None]
CONFIG = "config.json"
SETTINGS = {*REQUIRED, *OPTIONAL, SAFECODE_JSON}
SECOND_TOKENIZER = "*_tokenizer/tokenizer.json"  # the other one, of a model that has two
MEGABYTE = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class _RepoFile:
    """A file of a model on the hub; `blob` is its name in the cache, `sha256` is None for files kept in git."""

    size: int | None
    blob: str
    sha256: str | None


class Download:
    """One model's files on their way into the cache."""

    def __init__(self, name: str, revision: str, report: Report) -> None:
        self._name, self._revision, self._report = name, revision, report

    def run(self) -> Path:
        """Downloads what the cache lacks; the folder of the model in the cache.

        Raises:
            CheckpointError: as `find_checkpoint` says.
        """
        with explained(self._name, self._revision, None), _quiet():
            info = HfApi().model_info(self._name, revision=self._revision, files_metadata=True)
        files = {
            file.rfilename: _RepoFile(
                size=file.size,
                blob=file.lfs.sha256 if file.lfs else file.blob_id or "",
                sha256=file.lfs.sha256 if file.lfs else None,
            )
            for file in info.siblings or ()
        }
        commit = str(info.sha)
        if CONFIG not in files:
            raise CheckpointError(
                f"{self._name} has no {CONFIG}; expected a model that transformers can load"
            )
        if not {SINGLE, INDEX} & set(files):
            raise CheckpointError(self._no_safetensors(files))
        # By its branch or tag, which the cache then knows; all else by the commit.
        folder = self._fetch(CONFIG, files, self._revision).parent
        if folder.name != commit:
            raise CheckpointError(
                f"{self._name}@{self._revision} moved from {commit} to {folder.name} just now; run the export again"
            )
        for file in sorted(files):
            if file in SETTINGS or PurePosixPath(file).match(SECOND_TOKENIZER):
                self._fetch(file, files, commit)
        if SINGLE in files:
            weights = [SINGLE]
        else:
            weights = sorted(set(read_index(self._fetch(INDEX, files, commit)).values()))
        for file in weights:
            if file not in files:
                raise CheckpointError(
                    f"{self._name}: {INDEX} places tensors in {file}, which the model lacks"
                )
        self._require_space({file: files[file] for file in weights})
        self._fetch_weights(weights, files, commit)
        return folder

    def _fetch_weights(self, weights: Sequence[str], files: Mapping[str, _RepoFile], commit: str) -> None:
        total, before = sum(files[file].size or 0 for file in weights), 0
        for file in weights:
            arrived = before

            def count(more: int) -> None:
                nonlocal arrived
                arrived += more
                self._report("download (MB)", arrived // MEGABYTE, -(-total // MEGABYTE))

            self._fetch(file, files, commit, count)
            before += files[file].size or 0
        self._report("download (MB)", -(-total // MEGABYTE), -(-total // MEGABYTE))

    def _fetch(
        self,
        file: str,
        files: Mapping[str, _RepoFile],
        revision: str,
        count: Callable[[int], None] = lambda more: None,
    ) -> Path:
        """One file in the cache, checked by its size and, if it came just now, by its SHA-256."""
        expected = files[file]
        with explained(self._name, self._revision, file), _quiet():
            cached = try_to_load_from_cache(self._name, file, revision=revision)
            fresh = not isinstance(cached, str) or expected.size not in (None, Path(cached).stat().st_size)
            path = Path(
                hf_hub_download(
                    self._name,
                    file,
                    revision=revision,
                    force_download=fresh and isinstance(cached, str),
                    tqdm_class=_bar(count),
                )
            )
            found = file_entry(path) if fresh else None
        if found and not (expected.size in (None, found.bytes) and expected.sha256 in (None, found.sha256)):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CheckpointError(
                f"{file} of {self._name} did not arrive as the hub has it ({found.bytes} bytes); "
                "run the export again"
            )
        return path

    def _require_space(self, weights: Mapping[str, _RepoFile]) -> None:
        """Fails before the download if the weights that are still to come do not fit on the cache's disk."""
        cache = Path(constants.HF_HUB_CACHE)
        blobs = cache / repo_folder_name(repo_id=self._name, repo_type="model") / "blobs"
        needed = sum(file.size or 0 for file in weights.values() if not (blobs / file.blob).exists())
        free = shutil.disk_usage(cache).free
        if needed > free:
            raise CheckpointError(
                f"the weights of {self._name} take {needed / 1e9:.1f} GB more, and the disk of {cache} has "
                f"{free / 1e9:.1f} GB left; make room, or set HF_HOME to a folder on another disk"
            )

    def _no_safetensors(self, files: Mapping[str, _RepoFile]) -> str:
        message = f"{self._name}@{self._revision} has no {SINGLE}, and only safetensors weights are read"
        pickles = sorted(file for file in files if is_pickle(file))
        if not pickles:
            return f"{message}; choose a model that has some"
        return f"{message}, not {pickles[0]}; to convert it, run: {conversion_command(self._name)}"


def _bar(count: Callable[[int], None]) -> type[tqdm]:
    """A progress bar for huggingface_hub that draws nothing and tells how many bytes came."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            count(int(options.get("initial") or 0))

        def update(self, n: float | None = 1) -> None:
            count(int(n or 0))

    return Bar


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps huggingface_hub's own log, which says every retry in two lines, off stderr."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
