"""Every text decoder against transformers: logits and greedy tokens of tiny random checkpoints."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.contract import ATTENTION_FORMS, PRECISIONS, AttentionForm, Precision
from safecode_trt.errors import CheckpointError
from safecode_trt.models import ModelSpec, TextConfig, WeightNames
from safecode_trt.models.spec import read_json
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.rotary import RotaryEmbedding
from tests.decoder_runner import DecoderRunner, greedy, prefill
from tests.text_only import text_only

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

from safecode_trt.export.agreement import measure_agreement  # noqa: E402
from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402
from safecode_trt.export.decoder import write_decoder  # noqa: E402
from safecode_trt.export.export_config import ExportConfig  # noqa: E402
from safecode_trt.export.package import geometry  # noqa: E402

PROMPT = np.array([1, 40, 77, 91, 120, 133, 60, 150, 18, 199, 31], np.int64)
CAPACITY = 64
NAMES = WeightNames(
    embed_tokens="model.embed_tokens.weight",
    norm="model.norm.weight",
    lm_head="lm_head.weight",
    layer="model.layers.{i}.",
)
TINY: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# The class of transformers, and what differs from TINY.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vicuna": ("Llama", {"num_key_value_heads": 4}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 8, "head_dim": 24}),
    "llama3.1": (
        "Llama",
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32, "rope_theta": 500.0}},
    ),
    "biased llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "windowed mistral": ("Mistral", {"sliding_window": CAPACITY}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2.5": ("Qwen2", {"rope_parameters": {**YARN, "rope_theta": 1000.0}}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "biased qwen3": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)
every_form = pytest.mark.parametrize("attention", ATTENTION_FORMS)


@dataclass(frozen=True, slots=True)
class Tiny:
    """One checkpoint, and what transformers makes of it."""

    folder: Path
    spec: ModelSpec
    graphs: Path
    first: np.ndarray  # logits (V,) behind the prompt
    reply: list[int]  # 32 greedy tokens
    led: np.ndarray  # four rows of token ids (4, T)
    led_logits: np.ndarray  # logits (4, T, V) at each position of them

    def runner(self, precision: Precision, attention: AttentionForm) -> DecoderRunner:
        sizes = geometry(self.spec, ExportConfig(context_length=CAPACITY))
        path = self.graphs / f"{precision}-{attention}.onnx"
        if not path.exists():
            write_decoder(
                Checkpoint(self.folder), self.spec, sizes, path, precision=precision, attention=attention
            )
        return DecoderRunner(path, sizes, precision)

    def feeds(self) -> FeedBuilder:
        text = self.spec.text
        shape = (text.vocab_size, text.hidden_size)
        return FeedBuilder(text, Checkpoint(self.folder).mapped(NAMES.embed_tokens, shape), CAPACITY)


def spec_of(folder: Path) -> ModelSpec:
    """What the decoder needs of a spec: a text model has no pictures."""
    config = read_json(folder / "config.json")
    text = TextConfig.from_config(config, tie_word_embeddings=config["tie_word_embeddings"])
    return text_only(text, NAMES)


def randomise(model: Any) -> None:
    """Weights large enough that greedy replies wander; biases and norms that matter."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                weight.copy_(0.1 * noise)
            else:
                weight.copy_(1.3 * weight.shape[1] ** -0.5 * noise)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these spend their time on waking threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Makes each checkpoint once."""
    made: dict[str, Tiny] = {}

    def make(name: str) -> Tiny:
        if name not in made:
            made[name] = _make(name, tmp_path_factory.mktemp("decoder"))
        return made[name]

    return make


def _make(name: str, folder: Path) -> Tiny:
    family, changes = DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**TINY | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    randomise(model)
    model.save_pretrained(folder)
    tokens = PROMPT.tolist()
    led = np.random.Generator(np.random.PCG64(5)).integers(3, TINY["vocab_size"], (4, CAPACITY))
    with torch.no_grad():
        led_logits = model(input_ids=torch.from_numpy(led)).logits.numpy()
        for _ in range(32):
            logits = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
            tokens.append(int(logits[-1].argmax()))
    first, reply = logits[len(PROMPT) - 1], tokens[len(PROMPT) :]
    return Tiny(folder, spec_of(folder), folder, first, reply, led, led_logits)


@every_decoder
@every_form
def test_first_logits_and_greedy_tokens_are_those_of_transformers(
    tiny: Callable[[str], Tiny], name: str, attention: AttentionForm
) -> None:
    model = tiny(name)
    runner, feeds = model.runner("fp32", attention), model.feeds()
    logits = prefill(runner, feeds, KVCache(runner.allocate(1), rows=1), [PROMPT])[0]
    assert np.allclose(logits, model.first, atol=2e-4, rtol=1e-3)
    assert greedy(runner, feeds, PROMPT, 32) == model.reply
    assert len(set(model.reply)) > 8, "a reply that repeats itself tests little"


@every_decoder
@every_form
@pytest.mark.parametrize(("precision", "noise"), [("fp16", 0.005), ("int8", 0.05)])
def test_led_positions_have_the_same_best_token(
    tiny: Callable[[str], Tiny], name: str, attention: AttentionForm, precision: Precision, noise: float
) -> None:
    """The best token, or one of a near tie: random weights have many of those."""
    model = tiny(name)
    runner, feeds = model.runner(precision, attention), model.feeds()
    logits = []
    for tokens in model.led:
        prompts = [tokens[:length] for length in range(1, CAPACITY + 1)]
        logits.append(prefill(runner, feeds, KVCache(runner.allocate(CAPACITY), rows=CAPACITY), prompts))
    found = measure_agreement(np.concatenate(logits), np.concatenate(model.led_logits))
    assert found.top1_within_noise >= 0.99 and found.noise <= noise


@pytest.mark.parametrize("name", ["biased llama", "biased qwen3"])
@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "bf16"])  # which no CPU can run
def test_biases_and_norms_are_in_every_graph(
    tiny: Callable[[str], Tiny], name: str, precision: Precision
) -> None:
    onnx = pytest.importorskip("onnx")
    model, found = tiny(name), []
    for attention in ATTENTION_FORMS:
        runner, feeds = model.runner(precision, attention), model.feeds()
        path = model.folder / f"{precision}-{attention}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        names = [node.name for node in graph.node]
        assert len(set(names)) == len(names)
        types = {weight.name: weight.data_type for weight in graph.initializer}
        wanted = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
        parts = ["qkv_proj/bias", "o_proj/bias"] + (["q_norm/weight"] if "qwen" in name else [])
        assert [types[f"/model/layers.1/self_attn/{part}"] for part in parts] == [wanted] * len(parts)
        found.append(prefill(runner, feeds, KVCache(runner.allocate(1), rows=1), [PROMPT]))
    assert np.abs(found[0] - found[1]).max() < {"fp32": 1e-4, "fp16": 0.02}.get(precision, 0.2)


VL = {
    "qwen2_vl_text": ("qwen2_vl", "Qwen2VLText", {"mrope_section": [2, 3, 3], "rope_theta": 1e4}),
    "qwen2_5_vl_text": ("qwen2_5_vl", "Qwen2_5_VLText", {"mrope_section": [2, 3, 3], "rope_theta": 1e4}),
    "qwen3_vl_text": ("qwen3_vl", "Qwen3VLText", {"mrope_section": [4, 2, 2], "rope_theta": 1e4}),
}


@every_form
@pytest.mark.parametrize("model_type", VL)
def test_positions_with_three_axes(tmp_path: Path, model_type: str, attention: AttentionForm) -> None:
    """A text model with a picture's positions: three rows of numbers that differ."""
    package, family, rope = VL[model_type]
    module = f"transformers.models.{package}"
    config_class = getattr(importlib.import_module(f"{module}.configuration_{package}"), f"{family}Config")
    model_class = getattr(importlib.import_module(f"{module}.modeling_{package}"), f"{family}Model")
    config = config_class(**TINY, head_dim=16, rope_parameters={"rope_type": "default", **rope})
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    positions = np.array(
        [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]]
    )
    tokens = PROMPT[: positions.shape[1]]
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens)[None],
            position_ids=torch.from_numpy(positions)[:, None],
            use_cache=False,
        )
        expected = (out.last_hidden_state[0, -1] @ model.embed_tokens.weight.T).numpy()

    names = WeightNames(
        embed_tokens="embed_tokens.weight", norm="norm.weight", lm_head="", layer="layers.{i}."
    )
    text = TextConfig.from_config(read_json(tmp_path / "config.json"), tie_word_embeddings=True)
    spec = text_only(text, names)
    sizes, path = geometry(spec, ExportConfig(context_length=CAPACITY)), tmp_path / "decoder.onnx"
    checkpoint = Checkpoint(tmp_path)
    write_decoder(checkpoint, spec, sizes, path, precision="fp32", attention=attention)
    runner = DecoderRunner(path, sizes, "fp32")
    builder = FeedBuilder(text, checkpoint.mapped(names.embed_tokens, (200, 64)), CAPACITY)
    cache = KVCache(runner.allocate(1), rows=1)
    feeds = builder.feeds([builder.text_row(tokens)], np.array([len(tokens)]), cache)
    plain = runner.decode(feeds, cache.memory)[0]
    cos, sin = RotaryEmbedding(text, CAPACITY)(positions[:, None])
    logits = runner.decode(replace(feeds, rope_cos=cos, rope_sin=sin), cache.memory)[0]
    assert np.abs(logits - expected).max() < 2e-4
    assert np.abs(plain - expected).max() > 0.01, "the positions must matter"


def test_a_bias_that_is_missing_is_named(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    model = tiny("vicuna")
    text = replace(model.spec.text, qkv_bias=True)
    spec = text_only(text, NAMES)
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.0\.self_attn\.q_proj\.bias"):
        write_decoder(
            Checkpoint(model.folder),
            spec,
            geometry(spec, ExportConfig(context_length=CAPACITY)),
            tmp_path / "decoder.onnx",
            precision="fp32",
        )
