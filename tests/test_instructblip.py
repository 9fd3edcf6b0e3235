"""InstructBLIP: what its vision encoder reads of a request, against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import CheckpointError, PromptError
from safecode_trt.manifest import REFERENCE
from safecode_trt.models import load_spec
from safecode_trt.policy.base import Context, PixelNoise, Plan, PromptEdit
from safecode_trt.runtime import Message
from safecode_trt.runtime.image import noise_views, normalise
from safecode_trt.runtime.prompt import PromptBuilder
from safecode_trt.runtime.request import Request, as_messages, prepare
from safecode_trt.tensors import map_tensors
from tests.families.instructblip import CASE, inputs
from tests.family_checkpoints import FamilyCheckpoints
from tests.test_explanation import check_prefill_again

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

REQUEST, TEMPLATE = "Can I touch it?", "{request} Is that safe here?"
PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
REAL, JUDGE = Context(name="real"), Context(name="judge", prompt="judge", lifetime="prefill")
NOISED = Context(name="noised", picture="noised", lifetime="steered")
CACHED = Context(name="cached", picture="cached", lifetime="steered")


@pytest.fixture(scope="module")
def folder(made: FamilyCheckpoints) -> Path:
    return made.checkpoint(CASE)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> PromptBuilder:
    return PromptBuilder(folder, load_spec(folder))


@pytest.fixture(scope="module")
def engine(made: FamilyCheckpoints) -> Iterator[Engine]:
    with Engine.open(made.bundle(CASE).path, config=RuntimeConfig(threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import InstructBlipForConditionalGeneration

    return InstructBlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def planned(engine: Engine, *contexts: Context, template: str = TEMPLATE, images: int = 1) -> Request:
    return prepare(
        as_messages(REQUEST, images),
        [PICTURE] * images,
        plan=Plan(
            contexts=contexts,
            prompts={"judge": PromptEdit(template=template)},
            noise=PixelNoise(sigma=0.5),
        ),
        prompts=engine.model.prompts,
        spec=engine.model.spec,
        capacity=engine.model.capacity,
        kept=lambda key: None,
    )


def theirs(model: Any, arrays: Mapping[str, Any]) -> np.ndarray:
    names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
    given = {name: torch.as_tensor(arrays[name]) for name in names if name in arrays}
    with torch.no_grad():
        return np.asarray(model.get_image_features(**given, return_dict=True).pooler_output[0])


def test_the_judge_sees_with_its_own_words(engine: Engine, model: Any, folder: Path) -> None:
    found = engine.model.features(planned(engine, REAL, JUDGE), seed=0)
    real = found["real", "request"]["image_features"]
    judge = found["real", "judge"]["image_features"]
    assert np.abs(real - judge).max() > 0.01
    for features, text in ((real, REQUEST), (judge, TEMPLATE.replace("{request}", REQUEST))):
        np.testing.assert_allclose(features, theirs(model, inputs(folder, text, PICTURE)), atol=1e-4)


def test_a_reply_is_that_of_transformers(engine: Engine, model: Any, folder: Path) -> None:
    given = {name: torch.as_tensor(x) for name, x in inputs(folder, REQUEST, PICTURE).items()}
    image = [engine.model.spec.image_token_id]
    expected = model.generate(**given, do_sample=False, max_new_tokens=6, suppress_tokens=image)
    reply = engine.generate(REQUEST, image=PICTURE, sampling=SamplingParams(max_new_tokens=6), mode="plain")
    assert reply.token_ids
    assert (
        list(reply.token_ids) == expected[0, given["input_ids"].shape[1] :].tolist()[: len(reply.token_ids)]
    )


def test_only_requests_of_one_length_share_a_call(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    encode = engine.model.session.encode

    def noted(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        calls.append(arrays["qformer_input_ids"].shape)
        return encode(arrays)

    monkeypatch.setattr(engine.model.session, "encode", noted)
    apart = engine.model.features(planned(engine, REAL, NOISED, JUDGE), seed=0)
    words = planned(engine, REAL, JUDGE).words
    assert calls == [(2, len(words["request"])), (1, len(words["judge"]))]
    calls.clear()
    together = engine.model.features(planned(engine, REAL, JUDGE, template="Can U touch it?"), seed=0)
    assert calls == [(2, len(words["request"]))]
    first, second = (x["real", "request"]["image_features"] for x in (apart, together))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_rows_share_no_picture(engine: Engine) -> None:
    passes = planned(engine, REAL, JUDGE).prefill.phases
    assert len(passes) == 1 and not passes[0].forks


def test_a_second_prompt_does_not_see_with_the_firsts_words(engine: Engine) -> None:
    check_prefill_again(engine)


def test_the_cached_picture_is_for_every_request(engine: Engine, model: Any) -> None:
    spec, defaults = engine.model.spec, engine.bundle.manifest.safecode
    found = engine.model.features(planned(engine, REAL, CACHED), seed=0)["cached", None]["image_features"]
    stored = map_tensors(engine.bundle.file(REFERENCE))["image_features"].float32()
    assert np.array_equal(found, stored)
    views = noise_views(spec.reference_layout, defaults.reference_sigma, defaults.reference_seed)
    empty = {"pixel_values": np.stack(normalise(views, spec)), "qformer_input_ids": np.array([[2, 3]])}
    np.testing.assert_allclose(stored, theirs(model, empty), atol=1e-4)


@pytest.mark.parametrize(
    "text",
    ["What is it?", "ÀÉ naïve — 東京 x?", "  two  spaces\nand a line ", "long words " * 9, "it's [a] <b>"],
)
def test_words_are_those_of_the_processor(folder: Path, prompts: PromptBuilder, text: str) -> None:
    expected = inputs(folder, text, PICTURE)["qformer_input_ids"][0]
    message = Message(role="user", text=text, images=1)
    assert prompts.words([message]).tolist() == expected.tolist()


@pytest.mark.parametrize("text", ["[CLS] it", "a [SEP] b [SEP]", "[[SEP]SEP]", "<image>", "</s>[DEC]"])
def test_a_user_cannot_write_the_controls_of_the_qformer(prompts: PromptBuilder, text: str) -> None:
    controls = {0, 2, 3, 4, 5}  # all but [UNK]
    first, *middle, last = prompts.words([Message(role="user", text=text, images=1)]).tolist()
    assert (first, last) == (2, 3) and not controls & set(middle) and len(middle) > 4


def test_without_a_picture_the_text_stands_alone(engine: Engine, prompts: PromptBuilder) -> None:
    found = prompts.encode([Message(role="user", text=REQUEST)], [])
    assert found.tolist() == prompts.tokenizer.encode(REQUEST).ids
    assert prompts.tokenizer.id_to_token(int(found[0])) == "</s>"
    assert planned(engine, REAL, JUDGE, images=0).words == {}


def test_turns_are_lines(prompts: PromptBuilder) -> None:
    turns = [
        Message(role="user", text="hello"),
        Message(role="assistant", text="hi"),
        Message(role="user", text="and now?"),
    ]
    assert prompts.tokenizer.decode(prompts.encode(turns, []).tolist()) == "hello\nhi\nand now?"


def test_a_request_that_the_qformer_cannot_read(engine: Engine) -> None:
    with pytest.raises(PromptError, match="has 603 tokens, but the vision encoder reads at most 512"):
        engine.stream("x " * 601, image=PICTURE, mode="plain")


def changed(folder: Path, target: Path, name: str, **changes: Any) -> Path:
    copied = Path(shutil.copytree(folder, target))
    settings = json.loads((copied / name).read_text())
    (copied / name).write_text(json.dumps({**settings, **changes}))
    return copied


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "config.json",
            {"text_config": {"model_type": "t5"}},
            "only decoder-only language models are supported",
        ),
        ("config.json", {"text_config": {}}, "text model_type 'opt' is not supported"),
        ("config.json", {"image_token_index": None}, "has no image_token_index"),
        (
            "preprocessor_config.json",
            {"size": {"height": 48, "width": 32}},
            "vision_config.image_size is 32; expected them to be equal",
        ),
    ],
)
def test_unsupported_checkpoints(
    folder: Path, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_spec(changed(folder, tmp_path / "changed", name, **changes))


def test_a_short_config_means_vicuna_7b(folder: Path, tmp_path: Path) -> None:
    short = {"text_config": {"model_type": "llama"}, "qformer_config": {}, "vision_config": {}}
    copied = changed(folder, tmp_path / "short", "config.json", num_query_tokens=32, **short)
    (copied / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 224, "width": 224}}))
    spec = load_spec(copied)
    assert (spec.text.hidden_size, spec.text.num_hidden_layers, spec.text.head_dim) == (4096, 32, 128)
    assert spec.max_words == 512 and spec.reference_layout.tokens == 32 and spec.resample == 3
    assert spec.vision_graph("float16").inputs[0].shape == ("P", 3, 224, 224)


def test_an_answer_ends_where_the_tokenizer_says(folder: Path, tmp_path: Path) -> None:
    from safecode_trt.export.package import special_tokens

    older = json.loads((folder / "config.json").read_text())["text_config"] | {"eos_token_id": 1}
    copied = changed(folder, tmp_path / "older", "config.json", text_config=older, eos_token_id=None)
    (copied / "generation_config.json").unlink()
    assert special_tokens(copied, load_spec(copied)).eos_token_ids == (1, 2)


def test_names_that_transformers_writes(model: Any, folder: Path, tmp_path: Path) -> None:
    from safecode_trt.export.checkpoint import Checkpoint

    model.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    spec = load_spec(folder)
    assert load_spec(tmp_path) == spec
    ours, written = Checkpoint(folder, spec.renames), Checkpoint(tmp_path, spec.renames)
    assert sorted(ours.names("")) == sorted(written.names(""))
    for name in ours.names(""):
        assert np.array_equal(ours.get(name, ours.shape(name)), written.get(name, ours.shape(name))), name
