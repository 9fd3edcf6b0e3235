"""Models from the Hugging Face Hub: against a stand-in of it, with huggingface_hub in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from tests.cli_runner import ROOT
from tests.hub_server import Hub, Repo, commit_of, serving_hub

pytest.importorskip("huggingface_hub")
pytest.importorskip("torch")

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
FIND = """
import json, sys
from safecode_trt.errors import SafeCodeError
from safecode_trt.export.hub import find_checkpoint
steps = []
try:
    folder, source = find_checkpoint(
        sys.argv[1], offline=sys.argv[2:] == ["--offline"], report=lambda *step: steps.append(step)
    )
except SafeCodeError as error:
    sys.exit(str(error))
print(json.dumps({"folder": str(folder), "commit": source and source.commit, "steps": steps}))
"""


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@dataclass(frozen=True, kw_only=True)
class Client:
    """A machine with a cache of its own."""

    hub: Hub
    home: Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        kept = {key: value for key, value in kept.items() if not key.startswith(("HF_", "HUGGING"))}
        hub = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, "PYTHONPATH": str(ROOT)}
        return {**kept, **hub, **variables}

    def find(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", FIND, *arguments]
        return subprocess.run(
            command,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
        )

    def finds(self, *arguments: str, **variables: str) -> tuple[Path, str]:
        done = self.find(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        answer = json.loads(done.stdout)
        return Path(answer["folder"]), answer["commit"]

    def fails(self, *arguments: str, **variables: str) -> str:
        done = self.find(*arguments, **variables)
        assert done.returncode == 1 and done.stdout == "", done
        (line,) = done.stderr.splitlines()
        return line

    def export(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "safecode_trt", "export", *arguments]
        return subprocess.run(
            command,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
        )


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path) -> dict[str, bytes]:
    return read(tiny_checkpoint)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sharded") / "checkpoint"
    write_checkpoint(folder, seed=6, shard_bytes=100_000)
    return read(folder)


@pytest.fixture
def client(tmp_path: Path, whole: dict[str, bytes]) -> Iterator[Client]:
    with serving_hub() as hub:
        publish(hub, NAME, {**whole, **OTHERS})
        home = tmp_path / "home"
        home.mkdir()
        yield Client(hub=hub, home=home)


def publish(hub: Hub, name: str, files: dict[str, bytes], *refs: str, gated: bool = False) -> str:
    """Puts the files on the hub as the commit of these branches and tags; by default of main."""
    commit = commit_of(files)
    repo = hub.repos.setdefault(name, Repo(commits={}, refs={}, gated=gated))
    repo.commits[commit] = files
    repo.refs.update(dict.fromkeys(refs or ("main",), commit))
    return commit


def test_only_what_an_export_reads_is_asked_for(client: Client, whole: dict[str, bytes]) -> None:
    folder, commit = client.finds(NAME)
    assert commit == commit_of({**whole, **OTHERS}) == folder.name
    assert client.home in folder.parents
    used = set(whole) - {"special_tokens_map.json"}
    assert read(folder) == {name: whole[name] for name in used}
    # One listing, and of each file what it is and what it holds: no telemetry, no updates, nothing else.
    assert client.hub.asked("GET")[0] == f"/api/models/{NAME}/revision/main"
    heads = [path.rpartition("/")[2] for path in client.hub.asked("HEAD")]
    assert sorted(heads) == sorted(used)
    assert len(client.hub.asked("GET")) == 1 + len(used) and not client.hub.asked("POST")
    assert not any("telemetry" in x.path or "agent" in x.path for x in client.hub.requests)
    assert not any("agent/" in x.agent for x in client.hub.requests)


def test_a_second_time_takes_the_cache(client: Client) -> None:
    first = client.finds(NAME)
    client.hub.requests.clear()
    assert client.finds(NAME) == first
    # That main is still the same commit is asked once, and by which name its settings go once more.
    assert client.hub.asked("GET") == [f"/api/models/{NAME}/revision/main"]
    assert client.hub.asked("HEAD") == [f"/{NAME}/resolve/main/config.json"]
    client.hub.requests.clear()
    assert client.finds(NAME, "--offline") == first
    assert client.finds(NAME, HF_HUB_OFFLINE="1") == first
    assert not client.hub.requests


def test_shards_come_by_their_index(client: Client, sharded: dict[str, bytes]) -> None:
    shards = [name for name in sharded if name.endswith(".safetensors")]
    assert len(shards) > 1
    publish(client.hub, "sharded", {**sharded, **OTHERS, "extra-00001.safetensors": b"not in the index"})
    folder, _ = client.finds("sharded")
    found = read(folder)
    assert {name: data for name, data in found.items() if name.endswith(".safetensors")} == {
        name: sharded[name] for name in shards
    }
    publish(client.hub, "broken", {name: data for name, data in sharded.items() if name != shards[0]})
    assert f"places tensors in {shards[0]}, which the model lacks" in client.fails("broken")
    # Of a model of which a shard is missing in the cache, offline says which.
    (folder / shards[0]).unlink()
    assert f"in the cache has no {shards[0]}" in client.fails("sharded", "--offline")


def test_a_branch_a_tag_and_a_commit(client: Client, whole: dict[str, bytes]) -> None:
    other = publish(client.hub, NAME, {**whole, "README.md": b"other"}, "refs/pr/1", "v1.0")
    main = client.hub.repos[NAME].refs["main"]
    assert client.finds(f"{NAME}@v1.0")[1] == other
    client.hub.requests.clear()
    # The same weights of another commit: what the cache has is not sent again.
    for revision, commit in (("refs/pr/1", other), (other, other), ("main", main)):
        assert client.finds(f"{NAME}@{revision}")[1] == commit
        assert client.finds(f"{NAME}@{revision}", "--offline")[1] == commit
    assert not client.hub.asked("GET", ".safetensors")
    assert not any("/blobs/" in path for path in client.hub.asked("GET"))
    assert "has no branch, tag or commit 'v9'" in client.fails(f"{NAME}@v9")


def test_a_main_that_moved_is_followed(client: Client, whole: dict[str, bytes]) -> None:
    _, before = client.finds(NAME)
    config = json.dumps({**json.loads(whole["config.json"]), "note": "new"}).encode()
    commit = publish(client.hub, NAME, {**whole, "config.json": config})
    folder, after = client.finds(NAME)
    assert (after, (folder / "config.json").read_bytes()) == (commit, config) and after != before


def test_a_broken_connection_is_resumed_where_it_broke(client: Client, whole: dict[str, bytes]) -> None:
    weights = whole["model.safetensors"]
    client.hub.cuts[:] = [len(weights) // 3, len(weights) // 3]
    folder, _ = client.finds(NAME)
    assert (folder / "model.safetensors").read_bytes() == weights
    ranges = [x.range for x in client.hub.requests if "/blobs/" in x.path and x.method == "GET"]
    third = len(weights) // 3
    assert ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_a_download_that_breaks_for_good(client: Client, whole: dict[str, bytes]) -> None:
    client.hub.cuts[:] = [100, *[0] * 20]
    assert "the download of model.safetensors of owner/tiny-model broke off" in client.fails(NAME)
    assert "has no model.safetensors" in client.fails(NAME, "--offline")
    client.hub.cuts.clear()
    client.hub.requests.clear()
    folder, _ = client.finds(NAME)
    assert (folder / "model.safetensors").read_bytes() == whole["model.safetensors"]
    files = [path for path in client.hub.asked("GET") if "/resolve/" in path]
    assert not files, "settings that had arrived came again"


def test_weights_that_are_not_the_hubs_are_thrown_away(client: Client, whole: dict[str, bytes]) -> None:
    client.hub.spoiled = True
    assert "model.safetensors of owner/tiny-model did not arrive as the hub has it" in client.fails(NAME)
    client.hub.spoiled = False
    folder, _ = client.finds(NAME)
    assert (folder / "model.safetensors").read_bytes() == whole["model.safetensors"]
    # A file of the cache that was cut short, by a full disk or a crash.
    with (folder / "model.safetensors").resolve().open("r+b") as file:
        file.truncate(1000)
    assert client.finds(NAME)[0] == folder
    assert (folder / "model.safetensors").read_bytes() == whole["model.safetensors"]


def test_a_gated_model_needs_a_token(client: Client, whole: dict[str, bytes]) -> None:
    publish(client.hub, "meta/gated", whole, gated=True)
    client.hub.repos["meta/gated"].tokens = ("hf_right",)
    for variables in ({}, {"HF_TOKEN": "hf_wrong"}):
        line = client.fails("meta/gated", **variables)
        assert line == (
            f"meta/gated is gated; ask for access at {client.hub.url}/meta/gated, and with that run: hf auth login"
        )
    client.hub.requests.clear()
    client.finds("meta/gated", HF_TOKEN="hf_right")
    # The store of large files is another host, whom the token does not concern.
    tokens = {("/blobs/" in x.path, x.token) for x in client.hub.requests}
    assert tokens == {(False, "hf_right"), (True, None)}


def test_a_name_that_is_not_there(client: Client) -> None:
    for name in ("owner/nothing", "nothing"):
        line = client.fails(name)
        assert f"there is no folder '{name}' and no such model at {client.hub.url}" in line
        assert line.endswith("run: hf auth login")


@pytest.mark.parametrize(
    "name", ["./owner/model", "/no/such/folder", "a/b/c", "owner/", "a b", "", "owner/name@"]
)
def test_what_is_no_name_is_not_asked_for(client: Client, name: str) -> None:
    assert "is not a folder; expected the folder of a Hugging Face checkpoint" in client.fails(name)
    assert not client.hub.requests


def test_a_folder_comes_before_the_hub(client: Client) -> None:
    (client.home / NAME).mkdir(parents=True)
    done = client.find(NAME)
    assert json.loads(done.stdout) == {"folder": NAME, "commit": None, "steps": []}
    assert not client.hub.requests


def test_no_network(client: Client) -> None:
    line = client.fails(NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in line and "--offline" in line
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        arguments = (NAME,) if variables else (NAME, "--offline")
        line = client.fails(*arguments, **variables)
        assert f"the cache {client.home / 'hub'} has no {NAME}@main" in line
    assert not client.hub.requests


@pytest.mark.parametrize(
    ("status", "message"), [(503, "answered 503"), (401, "refuses access"), (403, "token (403)")]
)
def test_a_hub_that_fails(client: Client, status: int, message: str) -> None:
    client.hub.failing = status
    line = client.fails(NAME)
    assert message in line or "no such model" in line and status == 401


def test_a_disk_without_room(client: Client) -> None:
    script = FIND.replace(
        "steps = []",
        "import errno, shutil, huggingface_hub.file_download as download\n"
        "usage = shutil._ntuple_diskusage(10**9, 10**9, int(os.environ['LEFT']))\n"
        "shutil.disk_usage = lambda path: usage\n"
        "def full(*arguments, **options): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "if os.environ.get('FULL'): download.http_get = full\n"
        "steps = []",
    )
    command = [sys.executable, "-W", "ignore", "-c", "import os" + script, NAME]
    lines = []
    for variables in ({"LEFT": "1000"}, {"LEFT": str(10**9), "FULL": "1"}):
        environment = client.environment(**variables)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done
        (line,) = done.stderr.splitlines()
        lines.append(line)
        assert "set HF_HOME to" in line and not any("/blobs/" in path for path in client.hub.asked("GET"))
    assert f"and the disk of {client.home / 'hub'} has 0.0 GB left" in lines[0]
    assert f"the disk of {client.home / 'hub'} is full" in lines[1]


def test_xet_is_not_needed(client: Client, whole: dict[str, bytes]) -> None:
    client.hub.xet = True
    folder, _ = client.finds(NAME, HF_HUB_DISABLE_XET="1")
    assert (folder / "model.safetensors").read_bytes() == whole["model.safetensors"]
    assert not client.hub.asked("GET", "/api/xet")


def test_progress_ends_where_all_has_arrived(client: Client, whole: dict[str, bytes]) -> None:
    weights = b"\0" * 25_000_000
    publish(client.hub, "large", {**whole, "model.safetensors": weights})
    done = client.find("large")
    steps = json.loads(done.stdout)["steps"]
    assert [name for name, _, _ in steps] == ["download (MB)"] * len(steps)
    counts = [count for _, count, _ in steps]
    assert counts == sorted(counts) and counts[-1] == 25 and len(set(counts)) > 2
    assert {total for _, _, total in steps} == {25}


@pytest.mark.slow
def test_export_by_name_records_where_it_came_from(client: Client, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    done = client.export("--model", NAME, "--output", str(target), "--precision", "fp32")
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
    done = client.export("--model", NAME, "--output", str(tmp_path))
    assert done.returncode == 1 and "exists; pass --overwrite" in done.stderr
    assert not client.hub.requests


def test_export_says_what_is_wrong_in_one_line(client: Client, tmp_path: Path) -> None:
    done = client.export("--model", "owner/nothing", "--output", str(tmp_path / "bundle"))
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
    done = client.export("--model", str(folder), "--output", str(tmp_path / "bundle"))
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
    done = (
        client.export(
            "--model",
            "pickled model-safetensors",
            "--output",
            str(tmp_path / "bundle"),
            "--precision",
            "fp32",
        )
        if False
        else done
    )
