"""Checkpoints and requests that cannot be used, from the command line: one clear line, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.config import RuntimeConfig
from safecode_trt.engine import Engine
from safecode_trt.errors import CapacityError, SafeCodeError
from safecode_trt.models import known_model_types, load_spec
from tests.cli_runner import ASK, call, fails
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import write_null_bundle

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

Damage = Callable[[Path], object]
Tensors = dict[str, np.ndarray]
MODEL = "model.text_model."
WRONG: tuple[Any, ...] = (None, "x", -1, [], {}, [None], ...)  # the last is a key that is missing
PATCHES = "model.vision_model.embeddings.patch_embedding.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A checkpoint of each kind that the damages begin with; the head of "single" is not tied."""
    folder = tmp_path_factory.mktemp("whole")
    untied = {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False}
    write_checkpoint(folder / "single", dtype="F32", changes=untied)
    write_checkpoint(folder / "sharded", shard_bytes=100_000)
    write_checkpoint(folder / "instructblip", "instructblip", dtype="F32")
    return {path.name: path for path in folder.iterdir()}


def edit(name: str, **changes: Any) -> Damage:
    """Replaces keys of a JSON file; `a__b` is the key b of the object a."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        for key, value in changes.items():
            part, _, last = key.rpartition("__")
            (data[part] if part else data)[last] = value
        (folder / name).write_text(json.dumps(data))

    return damage


def tensors(change: Callable[[Tensors], object]) -> Damage:
    def damage(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return damage


def spoil(name: str, value: float) -> Damage:
    """Puts one value in the middle of a tensor."""

    def change(found: Tensors) -> None:
        flat = found[name].reshape(-1)
        flat[flat.size // 2] = value

    return tensors(change)


def retype(name: str, dtype: str) -> Damage:
    return tensors(lambda found: found.update({name: found[name].astype(dtype)}))


def shard(number: int, change: Callable[[Path], object]) -> Damage:
    return lambda folder: change(sorted(folder.glob("*.safetensors"))[number])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


DAMAGES: Mapping[str, tuple[str, Damage, str]] = {
    "missing shard": ("sharded", shard(1, Path.unlink), "is missing; model.safetensors.index.json places"),
    "truncated shard": ("sharded", shard(-1, cut), "is truncated: tensor"),
    "empty shard": (
        "sharded",
        shard(0, lambda path: path.write_bytes(b"")),
        "truncated or not a safetensors",
    ),
    "config that is no object": ("single", write("config.json", "[]"), "expected a JSON object, got list"),
    "config that is no JSON": ("single", write("config.json", "{"), "config.json cannot be read as JSON"),
    "settings that are missing": (
        "single",
        edit("preprocessor_config.json", max_image_size={}),
        "max_image_size must have a longest_edge",
    ),
    "tokenizer that is none": ("single", write("tokenizer.json", "{}"), "tokenizer.json cannot be read"),
    "template that is none": ("single", write("chat_template.jinja", "{% if %}"), "chat template is broken"),
    "one layer fewer": (
        "single",
        edit("config.json", text_config__num_hidden_layers=1),
        f"have a tensor {MODEL}layers.1.",
    ),
    "one layer more": (
        "single",
        edit("config.json", text_config__num_hidden_layers=3),
        f"no tensor {MODEL}layers.2.input_layernorm.weight; is the checkpoint complete?",
    ),
    "other vocabulary": (
        "single",
        edit("config.json", text_config__vocab_size=351),
        "has shape [352, 64], but config.json makes it [351, 64]",
    ),
    "other vision encoder": (
        "single",
        edit("config.json", vision_config__hidden_size=51),
        f"{PATCHES} has shape [48, 3, 8, 8], but config.json makes it [51, 3, 8, 8]",
    ),
    "no vision encoder": (
        "single",
        tensors(lambda found: [found.pop(name) for name in list(found) if "vision_model" in name]),
        "no tensor model.vision_model.",
    ),
    "no head": ("single", tensors(lambda found: found.pop("lm_head.weight")), "no tensor lm_head.weight"),
    "NaN in a table": ("single", spoil(f"{MODEL}embed_tokens.weight", np.nan), "not finite"),
    "NaN in a projection": ("single", spoil(f"{MODEL}layers.1.mlp.up_proj.weight", np.nan), "not finite"),
    "infinity in the head": ("single", spoil("lm_head.weight", -np.inf), "tensor lm_head.weight has values"),
    "NaN in the vision encoder": (
        "single",
        spoil(PATCHES, np.nan),
        f"tensor {PATCHES} has values that are not",
    ),
    "whole numbers in a table": ("single", retype(f"{MODEL}embed_tokens.weight", "int32"), "has type I32"),
    "whole numbers in a norm": ("single", retype(f"{MODEL}norm.weight", "int8"), "float32, got I8"),
    "experts": (
        "single",
        edit("config.json", text_config__num_local_experts=8),
        "num_local_experts is 8; mixtures of experts are not supported",
    ),
    "Flan-T5": (
        "instructblip",
        edit("config.json", text_config={"model_type": "t5"}),
        "only decoder-only language models are supported",
    ),
    "no tokenizer of the Q-Former": (
        "instructblip",
        lambda folder: (folder / "qformer_tokenizer" / "tokenizer.json").unlink(),
        "qformer_tokenizer/tokenizer.json cannot be read: No such file",
    ),
    "no queries": (
        "instructblip",
        tensors(lambda found: found.pop("query_tokens")),
        "no tensor query_tokens",
    ),
}


def export(folder: Path, *options: object) -> Any:
    output = folder.with_name("out")
    return call(
        "export", "--model", folder, "--output", output, "--precision", "fp32", "--no-verify", *options
    )


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint(whole: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    kind, damage, message = DAMAGES[name]
    damage(shutil.copytree(whole[kind], tmp_path / "checkpoint"))
    fails(export(tmp_path / "checkpoint"), 1, message)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_an_unknown_family_is_told_which_are_known(whole: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole["single"], tmp_path / "checkpoint"))
    for unknown in ("flamingo", None, "../idefics3", "spec"):
        edit("config.json", model_type=unknown)(folder)
        expected = f"model_type {unknown!r} is not supported; known: {', '.join(known_model_types())}"
        fails(export(folder), 1, expected)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_window_that_would_act(whole: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole["single"], tmp_path / "checkpoint"))
    edit("config.json", text_config__model_type="mistral", text_config__sliding_window=64)(folder)
    fails(export(folder, "--context-length", 65), 2, "sliding_window is 64; choose at most 64")
    assert os.listdir(tmp_path) == ["checkpoint"]


def paths(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a JSON object and of the objects in it."""
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.model_type)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_any_setting_may_be_wrong(
    made: FamilyCheckpoints, tmp_path: Path, case: FamilyCase, name: str
) -> None:
    """Missing or of another type: the family's defaults apply, or it is an error of ours in one line."""
    for source in made.checkpoint(case).glob("*.json"):
        shutil.copy(source, tmp_path)
    path = tmp_path / name
    right = path.read_text()
    for *above, last in paths(json.loads(right)):
        for wrong in WRONG:
            settings = json.loads(right)
            target = settings
            for key in above:
                target = target[key]
            if wrong is ...:
                del target[last]
            else:
                target[last] = wrong
            path.write_text(json.dumps(settings))
            try:
                load_spec(tmp_path)
            except SafeCodeError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("kept", [0, 1, 40, 200])
def test_a_picture_that_is_cut_off(tmp_path: Path, kept: int) -> None:
    bundle = write_null_bundle(tmp_path / "bundle")
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    half = (tmp_path / "picture.png").read_bytes()[:kept]
    (tmp_path / "picture.png").write_bytes(half)
    result = call("run", bundle, "--backend", "null", "--image", tmp_path / "picture.png", ASK)
    fails(result, 1, f"{tmp_path / 'picture.png'} ")


def test_more_pictures_than_the_cache_holds(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "bundle")
    picture = Image.new("RGB", (40, 30))
    with (
        Engine.open(bundle, config=RuntimeConfig(backend="null")) as engine,
        pytest.raises(
            CapacityError,
            match=r"holds 128; its pictures take \d+ of them.* a lower --max-tiles or a larger --context-length",
        ),
    ):
        engine.stream(ASK, image=[picture] * 8, mode="plain")
