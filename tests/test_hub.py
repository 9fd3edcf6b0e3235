"""Models from the Hugging Face Hub: against a stand-in of it, with huggingface_hub in processes of its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.errors import CheckpointError
from tests.hub_client import NAME, OTHERS, Client, hub_client, publish, read
from tests.hub_server import commit_of

pytest.importorskip("torch")


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
    with hub_client(tmp_path, whole) as made:
        yield made


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
    assert client.finds(NAME, offline=True) == first
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
    assert f"in the cache has no {shards[0]}" in client.fails("sharded", offline=True)


def test_a_branch_a_tag_and_a_commit(client: Client, whole: dict[str, bytes]) -> None:
    other = publish(client.hub, NAME, {**whole, "README.md": b"other"}, "refs/pr/1", "v1.0")
    main = client.hub.repos[NAME].refs["main"]
    assert client.finds(f"{NAME}@v1.0")[1] == other
    client.hub.requests.clear()
    # The same weights of another commit: what the cache has is not sent again.
    for revision, commit in (("refs/pr/1", other), (other, other), ("main", main)):
        assert client.finds(f"{NAME}@{revision}")[1] == commit
        assert client.finds(f"{NAME}@{revision}", offline=True)[1] == commit
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
    piece = 10 * 2**20  # how much huggingface_hub takes at a time
    weights = os.urandom(2 * piece + 1000)
    publish(client.hub, "large", {**whole, "model.safetensors": weights})
    client.hub.cuts[:] = [piece + 10, piece + 20]
    folder, _ = client.finds("large")
    assert (folder / "model.safetensors").read_bytes() == weights
    ranges = [x.range for x in client.hub.requests if "/blobs/" in x.path and x.method == "GET"]
    assert ranges == [None, f"bytes={piece}-", f"bytes={2 * piece}-"]
    names, counts, totals = zip(*client.steps, strict=True)
    assert set(names) == {"download (MB)"} and set(totals) == {21}
    assert counts == tuple(sorted(counts)) and counts[-1] == 21 and len(set(counts)) > 2


def test_a_download_that_breaks_for_good(client: Client, whole: dict[str, bytes]) -> None:
    client.hub.cuts[:] = [100, *[0] * 20]
    assert "the download of model.safetensors of owner/tiny-model broke off" in client.fails(NAME)
    assert "has no model.safetensors" in client.fails(NAME, offline=True)
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
    for line in (client.fails("meta/gated"), client.fails("meta/gated", HF_TOKEN="hf_wrong")):
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


def test_a_folder_comes_before_the_hub(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safecode_trt.export.hub import find_checkpoint

    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(NAME) == (Path(NAME), None)
    with pytest.raises(CheckpointError, match="is not a folder"):
        find_checkpoint(Path("owner/other"))  # a Path is never a name on the hub
    assert not client.hub.requests


def test_no_network(client: Client) -> None:
    line = client.fails(NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in line and "--offline" in line
    for line in (client.fails(NAME, offline=True), client.fails(NAME, HF_HUB_OFFLINE="1")):
        assert f"the cache {client.home / 'hub'} has no {NAME}@main" in line
    assert not client.hub.requests


@pytest.mark.parametrize("status", [500, 503, 403, 404])
def test_a_hub_that_fails(client: Client, status: int) -> None:
    client.hub.failing = status
    assert str(status) in client.fails(NAME)


def test_a_disk_without_room(
    client: Client, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(whole["model.safetensors"])
    left = shutil.disk_usage(client.home)._replace(free=size - 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: left)
        line = client.fails(NAME)
    assert f"the disk of {client.home / 'hub'} has 0.0 GB left" in line and "set HF_HOME to" in line
    assert not any("/blobs/" in path for path in client.hub.asked("GET"))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        line = client.fails(NAME)
    assert f"the disk of {client.home / 'hub'} is full" in line and "set HF_HOME to" in line
    client.finds(NAME)
    # What the cache has needs no room.
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: left._replace(free=0))
        client.finds(NAME)


def test_xet_is_not_needed(client: Client, whole: dict[str, bytes]) -> None:
    client.hub.xet = True
    folder, _ = client.finds(NAME, HF_HUB_DISABLE_XET="1")
    assert (folder / "model.safetensors").read_bytes() == whole["model.safetensors"]
    assert not client.hub.asked("GET", "/api/xet")
