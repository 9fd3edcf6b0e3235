"""A machine that asks the stand-in of the Hugging Face Hub, and what it finds there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safecode_trt.errors import CheckpointError
from tests.cli_runner import ROOT
from tests.hub_server import Hub, Repo, commit_of, serving_hub

constants = pytest.importorskip("huggingface_hub.constants")
close_session = pytest.importorskip("huggingface_hub").close_session

NAME = "owner/tiny-model"
# What a hub's model has besides, none of which an export reads.
OTHERS = {
    "README.md": b"# A model\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "pytorch_model.bin": b"pickle" * 100,
    "model-q4.gguf": b"gguf" * 100,
    "onnx/model.onnx": b"onnx" * 100,
    "modeling_tiny.py": b"raise SystemExit('remote code ran')\n",
    "consolidated.safetensors": b"another layout" * 100,
}


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@dataclass(kw_only=True)
class Client:
    """A machine with a cache of its own; huggingface_hub reads its variables as if it was imported anew."""

    hub: Hub
    home: Path
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        kept = {key: value for key, value in kept.items() if not key.startswith(("HF_", "HUGGING"))}
        hub = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, "PYTHONPATH": str(ROOT)}
        return {**kept, **hub, **variables}

    def finds(self, model: str, *, offline: bool = False, **variables: str) -> tuple[Path, str]:
        """The folder that is found, and the commit that it is of."""
        from safecode_trt.export.hub import find_checkpoint

        self.steps.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", self.environment(**variables))
            fresh_library()
            try:
                folder, source = find_checkpoint(
                    model, offline=offline, report=lambda *step: self.steps.append(step)
                )
            finally:
                patch.undo()
                fresh_library()
        assert source is not None and model.startswith(source.name)
        return folder, source.commit

    def fails(self, model: str, *, offline: bool = False, **variables: str) -> str:
        """What is said of it, in one line."""
        with pytest.raises(CheckpointError) as raised:
            self.finds(model, offline=offline, **variables)
        (line,) = str(raised.value).splitlines()
        return line

    def export(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "safecode_trt", "export", *map(str, arguments)],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
        )


def fresh_library() -> None:
    importlib.reload(constants)
    close_session()


def publish(hub: Hub, name: str, files: dict[str, bytes], *refs: str, gated: bool = False) -> str:
    """Puts the files on the hub as the commit of these branches and tags; by default of main."""
    commit = commit_of(files)
    repo = hub.repos.setdefault(name, Repo(commits={}, refs={}, gated=gated))
    repo.commits[commit] = files
    repo.refs.update(dict.fromkeys(refs or ("main",), commit))
    return commit


@contextmanager
def hub_client(folder: Path, files: dict[str, bytes]) -> Iterator[Client]:
    """A machine with an empty cache in the folder, and a hub where NAME has these files and others."""
    with serving_hub() as hub:
        publish(hub, NAME, {**files, **OTHERS})
        home = folder / "home"
        home.mkdir()
        yield Client(hub=hub, home=home)
