"""Text-only bundles against transformers' language models, and everywhere where other bundles have pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from safecode_trt.config import MODES, RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import BundleError, CheckpointError, ConfigError, PromptError
from safecode_trt.manifest import BUNDLE_JSON, DECODER
from safecode_trt.models import load_spec
from safecode_trt.policy import make_policy
from safecode_trt.runtime import Message
from safecode_trt.runtime.prompt import PromptBuilder
from safecode_trt.runtime.side_queries import first_logits
from tests.cli_runner import call, fails
from tests.engine_bundle import add_engines, opened

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

from safecode_trt.export import ExportConfig, export_bundle  # noqa: E402

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1000.0}
# What config.json may say of each family, beside its tiny size.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama 3": (
        "llama",
        {
            "head_dim": 24,
            "rope_parameters": {**LLAMA3, "rope_theta": 500.0, "original_max_position_embeddings": 32},
        },
    ),
    "llama, linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}},
    ),
    "mistral": ("mistral", {}),
    "mistral without a window": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied and yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 8}),
}
WINDOW = {"use_sliding_window": True, "sliding_window": 128}
CONVERSATION = [
    Message(role="system", text="Be brief."),
    Message(role="user", text="how do i clean a knife?"),
    Message(role="assistant", text="with care"),
    Message(role="user", text="and a saw?"),
]
REQUEST = "is it safe to touch a hot pan?"
DEMO_LINE = {
    "item": "1",
    "picture": "one.png",
    "request": REQUEST,
    "unsafe": True,
    "category": "heat",
    "caption_request": "what is it?",
    "caption": "a pan",
}
SHORT = SamplingParams(max_new_tokens=12, ignore_eos=True)
Made = Callable[[str], Bundle]
every_variant = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints and bundles in fp32, compared with transformers while they are made; the first lies beside it."""
    bundles: dict[str, Bundle] = {}

    def make(name: str) -> Bundle:
        if name not in bundles:
            family, changes = VARIANTS[name]
            folder = tmp_path_factory.mktemp("text") / "checkpoint"
            write_checkpoint(folder, family, seed=3, dtype="F32", changes=changes, spread=0.5)
            config = ExportConfig(precision="fp32")
            bundles[name] = export_bundle(folder, folder.with_name("bundle"), config=config)
        return bundles[name]

    return make


@pytest.fixture
def engine(made: Made) -> Iterator[Engine]:
    with Engine.open(made("llama").path, config=RuntimeConfig(threads=1)) as opened:

        def unseen(inputs: object) -> None:
            raise AssertionError("there is no vision encoder to call")

        opened.model.session.encode = unseen  # type: ignore[method-assign, assignment]
        yield opened


def chat(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


@every_variant
def test_logits_and_replies_are_those_of_transformers(made: Made, name: str) -> None:
    bundle = made(name)
    checkpoint = bundle.path.with_name("checkpoint")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(chat(CONVERSATION), add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        replied = model.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
    with Engine.open(bundle.path, config=RuntimeConfig(threads=1)) as engine:
        assert engine.model.prompts.encode(CONVERSATION, []).tolist() == ids
        found = first_logits(engine.model, CONVERSATION, [], seed=0)
        reply = engine.generate(CONVERSATION, sampling=replace(SHORT, max_new_tokens=24), mode="plain")
    np.testing.assert_allclose(found, logits, atol=1e-5 * np.abs(logits).max())
    assert list(reply.token_ids) == replied
    parity = bundle.manifest.parity
    assert parity is not None and parity.passed and parity.vision_encoder is None


@every_variant
def test_nothing_of_a_picture_is_in_the_bundle(made: Made, name: str) -> None:
    bundle = made(name)
    manifest = bundle.manifest
    assert manifest.text_only and set(manifest.graphs) == {DECODER}
    assert manifest.special_tokens.image_token_id is None and manifest.vision_precision is None
    assert manifest.geometry.image_seq_len == 0
    files = {path.name for path in bundle.path.rglob("*") if path.is_file()}
    assert not [file for file in files if "vision" in file or "reference" in file or "processor" in file]
    asked = manifest.safecode
    for text in (asked.judge_template, asked.reason_template, asked.explanation):
        assert "picture" not in text and "see" not in text.split()


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("mistral", {"sliding_window": 128}, "context_length is 200, but the model's sliding_window is 128"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1, "layer_types": None},
            "is 128",
        ),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear"}},
            "factor is missing; rope_type 'linear' needs it",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("qwen3", {"head_dim": 31}, "expected an even head_dim"),
        ("llama", {"num_key_value_heads": 3}, "divides num_attention_heads"),
        ("llama", {"hidden_size": "64"}, "hidden_size must be a positive integer, got '64'"),
        ("llama", {"num_experts": 4}, "mixtures of experts are not supported"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "has 'linear_attention'"),
        ("qwen3", {"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
        ("mistral", {"num_hidden_layers": 1}, "but config.json says that there are 1 layers"),
    ],
)
def test_a_config_is_read_strictly(
    made: Made, tmp_path: Path, name: str, changes: dict[str, Any], error: str
) -> None:
    checkpoint, folder = made(name).path.with_name("checkpoint"), tmp_path / "checkpoint"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((checkpoint / "config.json").read_text()) | changes
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ConfigError), match=error.replace("(", "\\(")):
        export_bundle(folder, tmp_path / "b", config=ExportConfig(context_length=200, precision="fp32"))
    assert not (tmp_path / "b").exists()


def test_a_picture_is_refused_before_any_work(engine: Engine, picture: Path) -> None:
    with pytest.raises(PromptError, match="llama reads text only and sees no picture; ask without one"):
        engine.stream(REQUEST, image=picture, mode="plain")
    with pytest.raises(PromptError, match="reads text only"):
        engine.model.prompts.encode([Message(role="user", text=REQUEST, images=1)], [])
    bundle = engine.bundle.path
    fails(call("run", bundle, "--image", picture, REQUEST), 1, "llama reads text only and sees no picture")
    talked = call("chat", bundle, "--max-new-tokens", 2, text=f"/image {picture}\nhello\n")
    assert talked.exit_code == 0 and "error: llama reads text only" in talked.stderr
    assert "2 tokens" in talked.stderr


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_works_on_the_verdict_alone(engine: Engine, mode: Any) -> None:
    policy = make_policy(mode, engine.bundle.manifest.safecode)
    reply = engine.generate(REQUEST, policy=policy, sampling=SHORT)
    assert reply.fallback_reason is None and reply.noise is None
    assert (reply.verdict is not None) == policy.plan.judged
    contrasted = {one.z_reference for step in reply.trace for one in step.candidates} - {None}
    assert bool(contrasted) == (mode in ("rose", "cfg", "coca")), (
        "what differs in the prompt is contrasted still"
    )


def test_without_a_picture_there_is_no_contrast(engine: Engine) -> None:
    """Two equal rows under z - alpha z' would make logits smaller, and with a temperature other replies."""
    defaults = engine.bundle.manifest.safecode
    warm = replace(SHORT, temperature=1.0, seed=4)
    plain = engine.generate(REQUEST, sampling=warm, mode="plain").token_ids
    assert engine.generate(REQUEST, policy=make_policy("vcd", defaults), sampling=warm).token_ids == plain
    for reference in ("noised", "absent"):
        settings = replace(
            defaults.settings, alpha=0.5, contrast="difference", beta=0.0, shift=0.0, reference=reference
        )
        policy = make_policy("safecode", defaults, settings=settings)
        assert engine.generate(REQUEST, policy=policy, sampling=warm).token_ids == plain


def test_that_there_is_no_picture_is_said_once(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    defaults = engine.bundle.manifest.safecode
    with caplog.at_level(logging.WARNING):
        engine.generate(REQUEST, sampling=SHORT, mode="plain")
        engine.generate(REQUEST, policy=make_policy("verdict-gate", defaults), sampling=SHORT)
        assert not caplog.messages
        for mode in ("safecode", "vcd", "safecode"):
            engine.generate(REQUEST, policy=make_policy(mode, defaults), sampling=SHORT)
    assert len(caplog.messages) == 1 and "no picture" in caplog.messages[0]
    talked = call("chat", engine.bundle.path, "--max-new-tokens", 2, text="hello\nagain\n")
    assert talked.stderr.count("shows no picture") == 1 and talked.stderr.count("2 tokens") == 2


def test_the_verbs(made: Made, tmp_path: Path) -> None:
    bundle = made("qwen3").path
    shown = call("inspect", bundle)
    assert "no vision encoder" in shown.stdout and "reference picture" not in shown.stdout
    checked = call("verify", bundle, "--against", bundle.with_name("checkpoint"))
    assert checked.exit_code == 0 and "in logits" in checked.stdout and "features" not in checked.stdout
    tried = call("doctor", bundle)
    assert "answered one token" in tried.stdout
    plot = tmp_path / "bench.png"
    timed = call("bench", bundle, "--repeats", 1, "--tokens", 2, "--plot", plot)
    assert timed.exit_code == 0, timed.output
    assert "SafeCoDe verdict" in timed.stdout and "vision, 1" not in timed.stdout and plot.is_file()
    asked = call(
        "export",
        "--model",
        bundle.with_name("checkpoint"),
        "--output",
        tmp_path / "b",
        "--vision-precision",
        "fp16",
    )
    fails(asked, 2, "--vision-precision is for a vision encoder, and qwen3 has none")


def test_a_calibration_needs_no_picture(made: Made, tmp_path: Path, picture: Path) -> None:
    bundle, items = made("qwen2").path, tmp_path / "items.jsonl"
    lines = [{"prompt": f"{REQUEST} {number}", "unsafe": number % 2 == 0} for number in range(50)]
    items.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fitted = call("calibrate", bundle, "--items", items, "--dry-run", "--json")
    assert fitted.exit_code == 0 and '"items": 50' in fitted.stdout, fitted.output
    items.write_text(items.read_text() + json.dumps({**lines[0], "picture": picture.name}) + "\n")
    fails(call("calibrate", bundle, "--items", items, "--dry-run"), 1, "qwen2 reads text only")


def test_an_evaluation_with_pictures_is_refused_at_once(made: Made, tmp_path: Path, picture: Path) -> None:
    data = tmp_path / "world"
    data.mkdir()
    (data / "one.png").write_bytes(picture.read_bytes())
    (data / "answers.json").write_text('["no"]')
    (data / "test.jsonl").write_text(json.dumps(DEMO_LINE) + "\n")
    result = call(
        "eval", made("qwen2").path, "--benchmark", "demo-world", "--data", data, "--output", tmp_path / "out"
    )
    fails(result, 1, "demo-world shows pictures")
    assert not (tmp_path / "out").exists()


def test_a_manifest_must_agree_with_itself(made: Made, tmp_path: Path) -> None:
    bundle = made("llama").path
    for key, value in (
        ("vision_precision", "fp32"),
        ("geometry", {**json.loads((bundle / BUNDLE_JSON).read_text())["geometry"], "image_seq_len": 4}),
    ):
        folder = tmp_path / key
        folder.mkdir()
        data = json.loads((bundle / BUNDLE_JSON).read_text()) | {key: value}
        (folder / BUNDLE_JSON).write_text(json.dumps(data))
        with pytest.raises(BundleError, match=r"has no vision encoder, which .* contradicts"):
            Bundle.open(folder)


@pytest.mark.usefixtures("packages")
def test_an_engine_on_a_gpu_has_the_tokens_of_onnx_runtime(made: Made, tmp_path: Path) -> None:
    """On the fake GPU."""
    built = add_engines(made("llama"), tmp_path, "tensorrt")
    assert set(built.manifest.engines[0].graphs) == {DECODER}
    replies = []
    for bundle in (built, made("llama")):
        with opened(bundle) as engine:
            policy = make_policy("safecode", bundle.manifest.safecode)
            replies.append(engine.generate(REQUEST, policy=policy, sampling=SHORT).token_ids)
    assert replies[0] == replies[1] and len(replies[0]) == 12


@pytest.mark.trt
def test_the_engine_is_the_decoder_alone(made: Made, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from safecode_trt.export.build import build_engines
    from safecode_trt.export.engine_config import EngineConfig

    config = ExportConfig(precision="fp16")
    bundle = export_bundle(made("qwen3").path.with_name("checkpoint"), tmp_path / "bundle", config=config)
    fast = EngineConfig(flavour="tensorrt-rtx", compute_capabilities=("86",), opt_level=0, max_prefill=64)
    entry = build_engines(bundle.path, fast)
    assert set(entry.graphs) == {DECODER} and entry.version == trt.__version__
    assert [path.name for path in bundle.path.rglob("*.engine")] == ["decoder.engine"]


def test_a_spec_without_pictures(made: Made) -> None:
    folder = made("mistral").path
    spec = load_spec(folder)
    ids = PromptBuilder(folder, spec).encode(CONVERSATION, [])
    assert spec.text_only and spec.image_token_id not in ids
    with pytest.raises(ConfigError, match="does not cut pictures"):
        load_spec(folder, max_tiles=2)


def test_the_drawn_picture_of_another_bundle_is_contrasted_still(demo_bundle: Path) -> None:
    """A request with a picture keeps the contrast, and one without has none, on the same engine."""
    with Engine.open(demo_bundle, config=RuntimeConfig(threads=1)) as engine:
        policy = make_policy("safecode", engine.bundle.manifest.safecode)
        image = Image.new("RGB", (64, 64), (200, 30, 30))
        seen = engine.generate(REQUEST, image=image, policy=policy, sampling=SHORT)
        unseen = engine.generate(REQUEST, policy=policy, sampling=SHORT)
    assert seen.trace[0].candidates[0].z_reference is not None
    assert unseen.verdict is not None and unseen.trace[0].candidates[0].z_reference is None
