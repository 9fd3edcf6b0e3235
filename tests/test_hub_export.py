"""The export of a model by its name on the hub, as a user types it: in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle
from tests.hub_client import NAME, Client, hub_client, publish, read

pytest.importorskip("torch")


@pytest.fixture
def client(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Client]:
    with hub_client(tmp_path, read(tiny_checkpoint)) as made:
        yield made


@pytest.mark.slow
def test_export_by_name_records_where_it_came_from(client: Client, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    done = client.export("--model", NAME, "--output", target, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    commit = client.hub.repos[NAME].refs["main"]
    source = Bundle.open(target).manifest.source
    assert source is not None
    assert (source.name, source.revision, source.commit) == (NAME, "main", commit)
    shown = subprocess.run(
        [sys.executable, "-m", "safecode_trt", "inspect", str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{NAME}@main, commit {commit}" in shown.stdout.replace("\n", "")
    # transformers, which the export is compared with, has asked for nothing either.
    assert all(NAME in x.path or "/blobs/" in x.path for x in client.hub.requests)
    assert (
        len(client.hub.asked("GET", ".safetensors"))
        + len([p for p in client.hub.asked("GET") if "blobs" in p])
        == 1
    )


def test_a_target_that_exists_is_told_before_the_download(client: Client, tmp_path: Path) -> None:
    done = client.export("--model", NAME, "--output", tmp_path)
    assert done.returncode == 1 and "exists; fix: pass --overwrite" in done.stderr
    assert not client.hub.requests


def test_export_says_what_is_wrong_in_one_line(client: Client, tmp_path: Path) -> None:
    done = client.export("--model", "owner/nothing", "--output", tmp_path / "bundle")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no folder 'owner/nothing' and no such model at")


@pytest.mark.slow
def test_pickled_weights_are_converted_as_told(client: Client, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The command in the message is run as it is, for a folder; the hub's message has the same for a name."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled model"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    publish(client.hub, "owner/pickled", read(folder))
    line = client.fails("owner/pickled")
    assert "only safetensors weights are read, not pytorch_model.bin; to convert it, run: python -c" in line
    assert not any("blobs" in path for path in client.hub.asked("GET"))
    done = client.export("--model", folder, "--output", tmp_path / "bundle")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    command = line.partition("; to convert them, run: ")[2]
    environment = {
        **client.environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(command, shell=True, env=environment, cwd=tmp_path, check=True, capture_output=True)
    converted = load_file(tmp_path / "pickled model-safetensors" / "model.safetensors")
    assert converted.keys() == weights.keys() and all(torch.equal(converted[x], weights[x]) for x in weights)
    converted_folder = tmp_path / "pickled model-safetensors"
    done = client.export("--model", converted_folder, "--output", tmp_path / "bundle", "--no-verify")
    assert done.returncode == 0, done.stderr
