"""A bundle on disk: opened with suspicion, written whole or not at all.

The manifest (`manifest.py`) names every file with its size and SHA-256. Paths must stay inside the bundle, also
through symbolic links. Knows nothing of graphs, tokens or backends.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safecode_trt import atomic, remedies
from safecode_trt.engine_entry import ENGINES
from safecode_trt.errors import BundleError, ConfigError
from safecode_trt.manifest import BUNDLE_JSON, DECODER, FIRST_UPGRADABLE, SCHEMA_VERSION, FileEntry, Manifest
from safecode_trt.records import from_dict, to_dict

__all__ = [
    "Bundle",
    "file_entry",
    "new_bundle",
    "read_document",
    "require_free",
    "require_writable",
    "write_manifest",
]

CHUNK = 1 << 20
# Graphs, settings and tokenizers; not the weights.
SMALL = 16 << 20
SETTINGS = (".json", ".jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle: its folder and its manifest, sizes checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, check_hashes: bool = True) -> Bundle:
        """Reads and checks a bundle; without `check_hashes` the hashes of its small files only.

        Raises:
            BundleError: the folder is no bundle, is of a newer schema, or a file is missing, changed, outside of it or
                not in its manifest; the message names the file, what was expected and what was found.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder; expected a bundle", fix=remedies.export(folder))
        return cls.from_document(folder, read_document(folder), check_hashes=check_hashes)

    @classmethod
    def from_document(cls, folder: Path, document: Mapping[str, Any], *, check_hashes: bool) -> Bundle:
        """As `open`, with a manifest that need not be the one in the folder.

        Raises:
            BundleError: as `open`.
        """
        bundle = cls(path=folder, manifest=_manifest(folder / BUNDLE_JSON, document))
        bundle._check_files(check_hashes)
        bundle._check_strangers()
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the bundle has no {name}", fix=remedies.export(self.path))
        return self.path / name

    def _check_files(self, check_hashes: bool) -> None:
        root = self.path.resolve()
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not self._resolve(path).is_relative_to(root):
                raise BundleError(f"{path} leads out of the bundle; expected a file inside {self.path}")
            if not path.is_file():
                raise BundleError(f"{path} is missing", fix=self._remedy(name))
            if (size := path.stat().st_size) != expected.bytes:
                raise BundleError(
                    f"{path}: expected {expected.bytes} bytes, found {size}", fix=self._remedy(name)
                )
            hashed = check_hashes or size <= SMALL
            if hashed and (digest := _sha256(path)) != expected.sha256:
                raise BundleError(
                    f"{path}: expected SHA-256 {expected.sha256[:16]}..., found {digest[:16]}...",
                    fix=self._remedy(name),
                )

    def _remedy(self, name: str) -> str:
        made = remedies.build if name.startswith(f"{ENGINES}/") else remedies.export
        return made(self.path)

    def _resolve(self, path: Path) -> Path:
        try:
            return path.resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise BundleError(f"{path} cannot be followed", fix=remedies.export(self.path)) from error

    def _check_strangers(self) -> None:
        """Settings that are not listed may change what is computed: a chat template goes before the tokenizer's."""
        for path in self.path.iterdir():
            listed = path.name in self.manifest.files or path.name == BUNDLE_JSON
            if path.suffix in SETTINGS and not listed and path.is_file():
                raise BundleError(
                    f"{path} is not listed in {BUNDLE_JSON}; expected the bundle's own settings only",
                    fix="move it away",
                )


def read_document(folder: Path) -> dict[str, Any]:
    """The JSON object in a bundle's manifest, of whatever schema.

    Raises:
        BundleError: the folder has no manifest, or it is no JSON object.
    """
    path = folder / BUNDLE_JSON
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} has no {BUNDLE_JSON}; expected a bundle", fix=remedies.export(folder)
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} is not a bundle manifest: not valid JSON ({error})", fix=remedies.export(folder)
        ) from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} is not a bundle manifest: expected an object", fix=remedies.export(folder))
    return document


def _manifest(path: Path, document: Mapping[str, Any]) -> Manifest:
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}",
            fix="pip install --upgrade safecode-trt",
        )
    if isinstance(version, int) and version < SCHEMA_VERSION:
        again = remedies.upgrade if version >= FIRST_UPGRADABLE else remedies.export
        raise BundleError(
            f"{path}: schema version {version} is older than {SCHEMA_VERSION}", fix=again(path.parent)
        )
    try:
        manifest = from_dict(Manifest, document, BUNDLE_JSON)
    except ConfigError as error:
        raise BundleError(
            error.message, field=error.field, where=str(path), fix=remedies.export(path.parent)
        ) from error
    if not _keeps_the_contract(manifest):
        raise BundleError(
            f"{path}: the decoder's inputs and outputs are not those of the contract",
            fix=remedies.export(path.parent),
        )
    return manifest


def _keeps_the_contract(manifest: Manifest) -> bool:
    """Whether the decoder has the contract's inputs and outputs; which others a family has, its spec knows."""
    decoder = manifest.graphs.get(DECODER)
    if decoder is None:
        return False
    contract = {tensor.name for tensor in manifest.decoder_contract().inputs}
    others = tuple(tensor for tensor in decoder.inputs if tensor.name not in contract)
    return decoder == manifest.decoder_contract(others)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )


def _digest(file: object) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(CHUNK), b""):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    return FileEntry(bytes=path.stat().st_size, sha256=_sha256(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes bundle.json in one step: a reader sees the old one or the new one.

    Raises:
        BundleError: the folder cannot be written.
    """
    try:
        atomic.write_text(folder / BUNDLE_JSON, json.dumps(to_dict(manifest), indent=2) + "\n")
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror or error}") from error


def require_writable(folder: Path, otherwise: str) -> None:
    """For what writes a manifest at the end of long work; `otherwise` says how to do without.

    Raises:
        BundleError: the folder is there and cannot be written.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise BundleError(f"{folder} cannot be written", fix=f"change its permissions, or {otherwise}")


@contextmanager
def new_bundle(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a folder next to `target` to write into; it becomes `target` only if nothing was raised.

    Where `target` is a link, it stays one, and the bundle that it leads to is replaced.

    Raises:
        BundleError: the target exists and may not be overwritten, is not a bundle, or cannot be written.
    """
    require_free(target, overwrite=overwrite)
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_folder(target) as folder:
            yield folder
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror or error}") from error


def require_free(target: Path, *, overwrite: bool) -> None:
    """Fails where a new bundle may not be written.

    Raises:
        BundleError: the target exists and may not be overwritten, or is not a bundle.
    """
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise BundleError(
                f"{target} exists", fix="pass --overwrite to replace it, or choose another --output"
            )
        if not (target / BUNDLE_JSON).is_file():
            raise BundleError(
                f"{target} exists and is not a bundle; it is not overwritten", fix="choose another --output"
            )
