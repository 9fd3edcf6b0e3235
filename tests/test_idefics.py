"""What only Idefics does, against transformers: who sees which picture, dialogues, variants of its cross layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.config import RuntimeConfig
from safecode_trt.contract import ATTENTION_FORMS, Precision
from safecode_trt.engine import Engine
from safecode_trt.errors import CheckpointError
from safecode_trt.models import load_spec
from safecode_trt.models.idefics import IdeficsSpec
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime import Message
from safecode_trt.runtime.contexts import row_keys, row_prompt
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.model import Prefilled
from safecode_trt.runtime.prefill import plan_prefill, run_prefill
from safecode_trt.runtime.prompt import PromptBuilder
from safecode_trt.runtime.request import prepare
from safecode_trt.tensors import map_tensors
from tests.families.idefics import CASE, processor_of
from tests.family_checkpoints import FamilyCheckpoints

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

from safecode_trt.export import ExportConfig, export_bundle  # noqa: E402
from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402

END = "<end_of_utterance>"
RED, BLUE = (Image.new("RGB", (50, 40), color) for color in ("red", "blue"))
HELLO = Message(role="assistant", text="hello there")
# Conversations, and transformers' prompts for the same: texts and pictures one behind the other.
DIALOGUES: Mapping[str, tuple[list[Message], list[Any]]] = {
    "no picture": (
        [Message(role="user", text="who are you?")],
        [f"User: who are you?{END}", "\nAssistant:"],
    ),
    "two side by side": (
        [Message(role="user", text="compare them", images=2)],
        ["User:", RED, BLUE, f"compare them{END}", "\nAssistant:"],
    ),
    "one after the other": (
        [
            Message(role="user", text="hi"),
            HELLO,
            Message(role="user", text="what is it?", images=1),
            HELLO,
            Message(role="user", text="and this?", images=1),
        ],
        [
            f"User: hi{END}\nAssistant: hello there{END}\nUser:",
            RED,
            f"what is it?{END}\nAssistant: hello there{END}\nUser:",
            BLUE,
            f"and this?{END}",
            "\nAssistant:",
        ],
    ),
}
every_dialogue = pytest.mark.parametrize("dialogue", DIALOGUES)


def their_inputs(folder: Path, prompt: list[Any]) -> dict[str, Any]:
    return dict(processor_of(folder)(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt"))


def prefilled(engine: Engine, messages: list[Message], prompt: list[Any]) -> Prefilled:
    """The conversation in a cache, with the pictures of transformers' prompt."""
    request = prepare(
        messages,
        [part for part in prompt if not isinstance(part, str)],
        plan=PLAIN.plan,
        prompts=engine.model.prompts,
        spec=engine.model.spec,
        capacity=engine.model.capacity,
        kept=lambda key: None,
    )
    return engine.model.prefill(request, engine.model.features(request, seed=0))


@pytest.fixture(scope="module")
def engine(made: FamilyCheckpoints) -> Iterator[Engine]:
    with Engine.open(made.bundle(CASE).path, config=RuntimeConfig(threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(made: FamilyCheckpoints) -> Any:
    found = transformers.IdeficsForVisionText2Text.from_pretrained(made.checkpoint(CASE), dtype=torch.float32)
    return found.eval()


def spec_of(made: FamilyCheckpoints) -> IdeficsSpec:
    return cast(IdeficsSpec, load_spec(made.checkpoint(CASE)))


@every_dialogue
def test_dialogues_are_those_of_the_processor(dialogue: str, made: FamilyCheckpoints) -> None:
    folder, spec = made.checkpoint(CASE), spec_of(made)
    messages, prompt = DIALOGUES[dialogue]
    layouts = [spec.reference_layout] * sum(message.images for message in messages)
    found = PromptBuilder(folder, spec).encode(messages, layouts)
    assert found.tolist() == their_inputs(folder, prompt)["input_ids"][0].tolist()


@every_dialogue
def test_logits_of_dialogues(dialogue: str, engine: Engine, model: Any, made: FamilyCheckpoints) -> None:
    messages, prompt = DIALOGUES[dialogue]
    ready = prefilled(engine, messages, prompt)
    inputs = their_inputs(made.checkpoint(CASE), prompt)
    with torch.no_grad():
        expected = model(**inputs).logits[0, -1].numpy()
    np.testing.assert_allclose(ready.logits[0], expected, atol=2e-5)
    # One more token, with the mask that transformers' generate() goes on with.
    step = engine.model.session.decode(
        engine.model.builder.step(7, ready.cache, ready.tail), ready.cache.memory
    ).logits[:, 0]
    mask = inputs["image_attention_mask"]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[7]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["image_attention_mask"] = torch.cat([mask, mask[:, -1:]], 1)
    with torch.no_grad():
        expected = model(**inputs).logits[0, -1].numpy()
    np.testing.assert_allclose(step[0], expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_every_token_sees_the_last_picture_of_its_document(seed: int, made: FamilyCheckpoints) -> None:
    from transformers.models.idefics import processing_idefics as theirs

    spec, draw = spec_of(made), np.random.Generator(np.random.PCG64(seed))
    image, end = spec.image_token_id, spec.document_end_id
    token_ids = draw.choice([40, 41, 42, image, end], size=30, p=[0.3, 0.2, 0.2, 0.15, 0.15])
    pictures = max(int((token_ids == image).sum()), 1)
    ids = torch.from_numpy(token_ids)[None]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(made.checkpoint(CASE))
    mask, _ = theirs.image_attention_mask_for_packed_input_ids(ids, tokenizer, "pt")
    mask = theirs.incremental_to_binary_attention_mask(mask, "pt", num_classes=pictures)[0].numpy()
    found = spec.token_inputs(
        token_ids, {"cross_key.0": np.zeros((pictures * spec.latents, 4, 16), np.float32)}
    )
    gate, bias = found["cross_attention_gate"], found["cross_attention_bias"]
    assert np.array_equal(gate[:-1, 0], mask.any(-1))
    seen = mask.astype(bool).repeat(spec.latents, axis=1)
    assert np.array_equal((bias[:-1] == 0)[mask.any(-1)], seen[mask.any(-1)])
    assert np.array_equal(bias[-1], bias[-2]) and gate[-1] == gate[-2]


def test_what_stands_before_the_picture_is_the_same_with_another(engine: Engine) -> None:
    """Rows that look at different pictures may share it: keys and values, to the last bit."""
    spec, layouts = engine.model.spec, [engine.model.spec.reference_layout]
    token_ids = engine.model.prompts.encode([Message(role="user", text="what is it?", images=1)], layouts)
    first = int(np.flatnonzero(token_ids == spec.image_token_id)[0])
    draw, shown = np.random.Generator(np.random.PCG64(0)), spec.row_inputs({})
    caches, keys = [], []
    for look in range(2):
        features = {name: draw.standard_normal((6, *x.shape[1:]), np.float32) for name, x in shown.items()}
        seen = row_keys(token_ids, look, spec.image_token_id)
        row = row_prompt(token_ids, seen, features, layouts, spec, engine.model.builder)
        cache = KVCache(engine.model.session.allocate(1), rows=1)
        run_prefill(plan_prefill([row.keys], [0]), [row], engine.model.session, cache, engine.model.builder)
        caches.append(cache)
        keys.append(row.keys)
    same = int(np.flatnonzero(keys[0] != keys[1])[0])
    assert same == first > 0
    before, behind = ([cache.save(0, n).data for cache in caches] for n in (first, first + 1))
    assert np.array_equal(*before) and not np.allclose(*behind)


VARIANTS: Mapping[str, dict[str, Any]] = {
    "no resampler, in front of every layer": {
        "use_resampler": False,
        "cross_layer_interval": 1,
        "num_hidden_layers": 2,
    },
    "plain queries, one gate, tied": {
        "qk_layer_norms": False,
        "alpha_type": "float",
        "perceiver_config.qk_layer_norms_perceiver": False,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_as_transformers_saves_them(variant: str, tmp_path: Path) -> None:
    drawn, saved = tmp_path / "drawn", tmp_path / "saved"
    write_checkpoint(drawn, "idefics", dtype="F32", changes=VARIANTS[variant])
    shutil.copytree(drawn, saved, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    transformers.IdeficsForVisionText2Text.from_pretrained(drawn).save_pretrained(saved)
    # In float32 an export that is not transformers' model is refused.
    bundle = export_bundle(saved, tmp_path / "bundle", config=ExportConfig(precision="fp32"))
    assert bundle.manifest.parity is not None and bundle.manifest.parity.top1_agreement == 1.0
    assert bundle.manifest.parity.decoder.max_abs_difference < 2e-4


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_both_forms_are_one_decoder_in_every_precision(precision: Precision, made: FamilyCheckpoints) -> None:
    messages, prompt = DIALOGUES["one after the other"]
    logits = []
    for attention in ATTENTION_FORMS:
        bundle = made.bundle(CASE, precision, attention)
        with Engine.open(bundle.path, config=RuntimeConfig(threads=1)) as opened:
            logits.append(prefilled(opened, messages, prompt).logits[0])
    # The rounding of activations, to 8 bits where weights are quantised, is not the same in both.
    assert np.abs(logits[0] - logits[1]).max() < 0.03 * np.abs(logits[0]).max()


def test_the_vocabulary_has_the_additional_tokens(made: FamilyCheckpoints) -> None:
    bundle, spec = made.bundle(CASE), spec_of(made)
    table = map_tensors(bundle.path / "embed_tokens.safetensors")["embed_tokens"]
    checkpoint = Checkpoint(made.checkpoint(CASE))
    parts = ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight")
    rows = [checkpoint.get(name, checkpoint.shape(name)) for name in parts]
    assert np.array_equal(table.float32(), np.concatenate(rows))
    assert len(rows[0]) <= spec.image_token_id < spec.text.vocab_size == len(rows[0]) + len(rows[1])
    assert bundle.manifest.special_tokens.eos_token_ids == (2, *spec.end_token_ids)


def edited(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_a_base_model_writes_no_end_of_utterance(made: FamilyCheckpoints, tmp_path: Path) -> None:
    tokenizer = json.loads((made.checkpoint(CASE) / "tokenizer.json").read_text())
    added = [token for token in tokenizer["added_tokens"] if token["content"] != END]
    folder = edited(made.checkpoint(CASE), tmp_path / "base", "tokenizer.json", added_tokens=added)
    spec = load_spec(folder)
    assert spec.end_token_ids == ()
    found = PromptBuilder(folder, spec).encode([Message(role="user", text="hi")], [])
    assert PromptBuilder(folder, spec).tokenizer.decode(found.tolist()) == "User: hi\nAssistant:"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"cross_layer_interval": 3}, "3 does not divide the 4 layers"),
        ("preprocessor_config.json", {"image_size": 224}, "resized to 224 .*image_size is 32"),
        ("tokenizer.json", {"added_tokens": []}, "no added tokens <image>"),
    ],
)
def test_settings_that_do_not_fit(
    file: str, changes: dict[str, Any], message: str, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_spec(edited(made.checkpoint(CASE), tmp_path / "edited", file, **changes))
