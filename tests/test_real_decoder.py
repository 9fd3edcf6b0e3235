"""SmolLM2-135M-Instruct: the checkpoint against its file, and bundles of it against transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.models import load_spec
from safecode_trt.runtime import Message
from safecode_trt.runtime.side_queries import first_logits
from tests.cli_runner import call
from tests.packages import fetched

pytestmark = [pytest.mark.real, pytest.mark.slow]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")
gguf = pytest.importorskip("gguf")

from gguf_llama import unpermuted  # noqa: E402
from packaged_files import wheel_file  # noqa: E402
from real_decoder import GGUF, PACKAGE, SHA256, write_idefics3, write_real_decoder  # noqa: E402
from safecode_trt.export import ExportConfig, export_bundle  # noqa: E402

QUESTION = "What is the capital of France?"
QUESTIONS = (QUESTION, "Why is the sky blue?", "List 3 fruits.\r\nThen stop.")
# Our own words.
PARAGRAPH = (
    "The sun rises in the east and sets in the west. Water boils at a hundred degrees Celsius at sea level, and it "
    "freezes at zero. Most birds can fly, but penguins cannot; they swim instead."
)
SHORT = SamplingParams(max_new_tokens=16)


@pytest.fixture(scope="module")
def source() -> Any:
    """The package's file, opened."""
    return gguf.GGUFReader(fetched(lambda: wheel_file(*PACKAGE, GGUF, SHA256)))


@pytest.fixture(scope="module")
def checkpoint(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    write_real_decoder(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def int4(checkpoint: Path) -> Path:
    """The bundle as the command line makes it; what is compared with transformers here is the one in fp32."""
    output = checkpoint.with_name("int4")
    made = call("export", "--model", checkpoint, "--output", output, "--context-length", 1024, "--no-verify")
    assert made.exit_code == 0, made.output
    return output


@pytest.fixture
def engine(int4: Path) -> Iterator[Engine]:
    with Engine.open(int4, config=RuntimeConfig(check_hashes=False)) as opened:
        yield opened


def halves(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def four_bits(blocks: np.ndarray) -> np.ndarray:
    """Q4_1 written out: a scale, an offset, then 16 bytes with weights i in their low and i + 16 in their high bits."""
    scale, offset, codes = halves(blocks[:, :2]), halves(blocks[:, 2:4]), blocks[:, 4:]
    return np.concatenate([codes & 15, codes >> 4], axis=1) * scale + offset


def eight_bits(blocks: np.ndarray) -> np.ndarray:
    """Q8_0 written out: a scale, then 32 signed bytes."""
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * halves(blocks[:, :2])


@pytest.mark.parametrize(
    ("theirs", "ours", "size", "read"),
    [
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight", 20, four_bits),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight", 20, four_bits),
        ("token_embd.weight", "model.embed_tokens.weight", 34, eight_bits),
    ],
)
def test_weights_are_those_of_the_file(
    source: Any, model: Any, theirs: str, ours: str, size: int, read: Any
) -> None:
    tensor = next(tensor for tensor in source.tensors if tensor.name == theirs)
    found = model.state_dict()[ours].numpy()
    expected = read(tensor.data.reshape(-1, size)).reshape(found.shape)
    np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))


def test_every_tensor_has_its_place(source: Any, model: Any) -> None:
    assert len(source.tensors) == len(list(model.parameters())) == 272
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008


def test_rows_are_in_the_order_that_rotary_positions_want() -> None:
    """GGUF's rows turn as neighbours and transformers' as halves: scores of queries and keys are the same."""
    draw = np.random.Generator(np.random.PCG64(2))
    heads, dim, hidden = 3, 8, 12
    query, key = (draw.standard_normal((heads * dim, hidden)).astype(np.float32) for _ in range(2))
    x, y = draw.standard_normal((2, hidden)).astype(np.float32)
    angles = 10.0 ** -np.arange(dim // 2)

    def neighbours(vector: np.ndarray, position: int) -> np.ndarray:
        pairs = vector.reshape(heads, dim // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * position * angles)
        return turned

    def as_halves(vector: np.ndarray, position: int) -> np.ndarray:
        first, second = vector.reshape(heads, 2, dim // 2).swapaxes(0, 1)
        return (first + 1j * second) * np.exp(1j * position * angles)

    expected = (neighbours(query @ x, 5) * neighbours(key @ y, 2).conj()).real.sum(-1)
    ours = as_halves(unpermuted(query, heads) @ x, 5) * as_halves(unpermuted(key, heads) @ y, 2).conj()
    np.testing.assert_allclose(ours.real.sum(-1), expected, rtol=1e-4)


def test_it_speaks(model: Any, tokenizer: Any) -> None:
    turn = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
        perplexity = math.exp(model(text, labels=text).loss)
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"
    assert perplexity < 20, "with rows in a wrong order it is in the thousands"


def test_the_bundle_is_whole_and_answers(int4: Path, checkpoint: Path) -> None:
    checked = call("verify", int4)
    assert checked.exit_code == 0, checked.output
    said = call("run", int4, "--mode", "plain", "--max-new-tokens", 24, QUESTION)
    assert said.exit_code == 0 and "The capital of France is Paris" in said.stdout
    judged = call("run", int4, "--max-new-tokens", 4, QUESTION)
    assert "p_unsafe" in judged.stderr and "shows no picture" in judged.stderr
    assert (
        "4-bit" in (checkpoint / "README.md").read_text()
        or "four bits" in (checkpoint / "README.md").read_text()
    )


def test_fp32_is_transformers(checkpoint: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    config = ExportConfig(precision="fp32", verify=False, context_length=256)
    bundle = export_bundle(checkpoint, tmp_path / "fp32", config=config)
    with Engine.open(bundle.path, config=RuntimeConfig(check_hashes=False)) as opened:
        for question in QUESTIONS:
            turn = [{"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
            with torch.no_grad():
                expected = model(torch.tensor([ids])).logits[0, -1].numpy()
            messages = [Message(role="user", text=question)]
            assert opened.model.prompts.encode(messages, []).tolist() == ids
            found = first_logits(opened.model, messages, [], seed=0)
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_same_decoder_behind_a_picture(engine: Engine, tmp_path: Path) -> None:
    """Without one an Idefics3 around it answers the same, and with one it says something else."""
    write_idefics3(tmp_path / "checkpoint")
    config = ExportConfig(verify=False, context_length=1024)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", config=config)
    spec = load_spec(bundle.path)
    picture = Image.fromarray(np.indices((40, 60)).sum(0).astype(np.uint8)).convert("RGB")
    with Engine.open(bundle.path, config=RuntimeConfig(check_hashes=False)) as around:
        for question in QUESTIONS[:2]:
            alone = engine.generate(question, sampling=SHORT, mode="plain")
            assert around.generate(question, sampling=SHORT, mode="plain").token_ids == alone.token_ids
        ids = around.model.prompts.encode(
            [Message(role="user", text=QUESTION, images=1)], [spec.layout(*picture.size)]
        )
        assert (ids == spec.image_token_id).sum() == spec.reference_layout.tokens
        seen = around.generate(QUESTION, image=picture, sampling=SHORT, mode="plain")
        assert seen.token_ids and seen.fallback_reason is None
