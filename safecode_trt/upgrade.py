"""Rewrites a bundle's manifest for the current schema, where the graphs have stayed the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safecode_trt.bundle import Bundle, read_document, require_writable, write_manifest
from safecode_trt.contract import ATTENTION_FORMS, PRECISIONS
from safecode_trt.errors import BundleError
from safecode_trt.manifest import FIRST_UPGRADABLE, SCHEMA_VERSION

__all__ = ["STEPS", "Step", "upgrade_bundle"]

Step = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Makes a manifest's JSON object of one schema into that of the next; the schema's number is set by others."""

STEPS: Mapping[int, Step] = {}
"""The steps by the schema that they start from; schema 6 is the first, and there is no later one yet."""


def upgrade_bundle(folder: Path) -> int:
    """Brings a bundle's manifest to the current schema and returns the number that it had.

    The files are held against the new manifest, hashes too, before it takes the place of the old one in one step. A
    bundle that has the current schema is opened without its hashes, and nothing is written.

    Raises:
        BundleError: the folder is no bundle or not whole, its schema is newer or cannot be upgraded, or the manifest
            cannot be written.
    """
    document: Mapping[str, Any] = read_document(folder)
    found = document.get("schema_version")
    if not isinstance(found, int) or found >= SCHEMA_VERSION:
        Bundle.from_document(folder, document, check_hashes=False)
        return SCHEMA_VERSION
    if found < FIRST_UPGRADABLE:
        raise BundleError(
            f"{folder} has schema version {found}, whose graphs are not those of {SCHEMA_VERSION}; "
            f"export it again: {_export_command(folder, document)}"
        )
    require_writable(folder, "upgrade a copy of it")
    for version in range(found, SCHEMA_VERSION):
        step = STEPS[version]
        try:
            document = {**step(document), "schema_version": version + 1}
        except (KeyError, TypeError, AttributeError) as error:  # of keys that are missing or of another type
            raise BundleError(
                f"{folder}: its manifest is not one of schema version {version} ({error!r}); export it again: "
                f"{_export_command(folder, document)}"
            ) from error
    write_manifest(folder, Bundle.from_document(folder, document, check_hashes=True).manifest)
    return found


def _export_command(folder: Path, document: Mapping[str, Any]) -> str:
    """The command that makes the bundle anew, with what its manifest says of how it was made."""
    words = ["safecode-trt", "export", "--model", "CHECKPOINT", "--output", str(folder), "--overwrite"]
    for key, known in (("precision", PRECISIONS), ("attention", ATTENTION_FORMS)):
        if document.get(key) in known:
            words += [f"--{key}", str(document[key])]
    return shlex.join(words)
