from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from make_random_checkpoint import make_config, write_checkpoint
from safecode_trt.errors import CheckpointError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.models import load_spec

SETTINGS = ("config.json", "tokenizer.json")
NORM = "model.text_model.norm.weight"
EMBED = "model.text_model.embed_tokens.weight"
KEYS = "model.text_model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "sharded", seed=5, shard_bytes=100_000)
    return tmp_path / "sharded"


def test_tensors_come_in_float32(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    values = checkpoint.get(NORM, (64,))
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(1.0, abs=0.1)
    assert EMBED in checkpoint
    assert checkpoint.mapped(EMBED, (352, 64)).dtype == "BF16"
    assert np.array_equal(checkpoint.get(NORM, (64,)), values), "pages that were given back are read again"


def test_shards_hold_what_a_single_file_holds(folder: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    single, several = Checkpoint(folder), Checkpoint(sharded)
    assert np.array_equal(single.get(EMBED, (352, 64)), several.get(EMBED, (352, 64)))
    assert single.sha256(SETTINGS) != several.sha256(SETTINGS)


def test_hash_follows_the_weights_and_the_settings(folder: Path) -> None:
    before = Checkpoint(folder).sha256(SETTINGS)
    assert Checkpoint(folder).sha256(SETTINGS) == before != Checkpoint(folder).sha256(SETTINGS[:1])
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    changed = Checkpoint(folder).sha256(SETTINGS)
    assert changed != before
    (folder / "tokenizer.json").write_text("{}")
    assert Checkpoint(folder).sha256(SETTINGS) not in (before, changed)


def test_missing_tensor_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor model\.other\.weight"):
        Checkpoint(folder).get("model.other.weight", (1,))


def test_wrong_shape_names_both_shapes(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"shape \[64\].*config.json makes it \[65\]"):
        Checkpoint(folder).get(NORM, (65,))


def test_joined_tensors_lie_behind_one_another(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded, joins=[("table", (EMBED, KEYS, EMBED))])
    parts = [checkpoint.get(EMBED, (352, 64)), checkpoint.get(KEYS, (32, 64))]
    joined = checkpoint.mapped("table", (736, 64))
    assert joined.dtype == "BF16"
    assert np.array_equal(joined.float32(), np.concatenate([*parts, parts[0]]))
    assert np.array_equal(checkpoint.get("table", (736, 64)), joined.float32())
    with pytest.raises(
        CheckpointError, match=r"table has shape \[736, 64\].*config.json makes it \[735, 64\]"
    ):
        checkpoint.get("table", (735, 64))


def test_parts_that_cannot_be_joined(folder: Path) -> None:
    joins = [("ghost", (EMBED, "model.other.weight")), ("torn", (EMBED, NORM))]
    checkpoint = Checkpoint(folder, joins=joins)
    with pytest.raises(CheckpointError, match=r"no tensor model\.other\.weight"):
        checkpoint.get("ghost", (352, 64))
    with pytest.raises(CheckpointError, match=rf"one after another.*{NORM} BF16 \[64\]"):
        checkpoint.get("torn", (352, 64))


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_values_that_are_not_finite_are_refused(folder: Path, bits: int) -> None:
    tensor = Checkpoint(folder).mapped(NORM, (64,))
    raw = (folder / "model.safetensors").read_bytes()
    changed = tensor.data.copy()
    changed[3] = bits
    (folder / "model.safetensors").write_bytes(raw.replace(tensor.data.tobytes(), changed.tobytes()))
    with pytest.raises(CheckpointError, match=f"{NORM} has values that are not finite"):
        Checkpoint(folder).get(NORM, (64,))


def _cut(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def _unlink(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def _index(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "truncated"),
        (_unlink, "is missing; model.safetensors.index.json places tensors in it"),
        (
            lambda folder: _index(folder, lambda names: names.update({"ghost": names[NORM]})),
            "places ghost in .* which does not have it",
        ),
        (
            lambda folder: _index(folder, lambda names: names.update({NORM: "../other.safetensors"})),
            "outside of the checkpoint folder",
        ),
        (lambda folder: _index(folder, lambda names: names.update({NORM: 3})), "no weight_map"),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            "neither model.safetensors nor",
        ),
    ],
    ids=["truncated", "missing shard", "ghost tensor", "path outside", "broken index", "no index"],
)
def test_damage_is_one_clear_error(sharded: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(sharded)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(sharded)


@pytest.mark.parametrize("size", ["tiny", "demo"])
def test_random_checkpoints_are_complete(tmp_path: Path, size: str) -> None:
    write_checkpoint(tmp_path, "idefics3", size, dtype="F16")
    spec = load_spec(tmp_path)
    text = spec.text
    assert text.hidden_size == make_config("idefics3", size).text_config.hidden_size
    table = Checkpoint(tmp_path).mapped(spec.weights.embed_tokens, (text.vocab_size, text.hidden_size))
    assert table.dtype == "F16"
