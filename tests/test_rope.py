"""Rotary tables against transformers' own functions and modules, on the parameters of published models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.models import TextConfig
from safecode_trt.runtime.rotary import RotaryEmbedding, attention_scale, inverse_frequencies

SIZES = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 2}
LLAMA3: dict[str, Any] = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CHUNKED = {"mrope_section": [16, 24, 24], "type": "mrope"}
INTERLEAVED = {"mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_type": "default"}
# model_type, rope_theta, max_position_embeddings, rope_scaling; as the checkpoints' config.json has them.
VARIANTS: dict[str, tuple[str, float, int, dict[str, Any] | None]] = {
    "vicuna": ("llama", 10000.0, 4096, None),
    "smollm2": ("llama", 130000.0, 8192, None),
    "vicuna-16k": ("llama", 10000.0, 4096, {"factor": 4.0, "type": "linear"}),
    "dynamic": ("llama", 10000.0, 4096, {"factor": 2.0, "type": "dynamic"}),
    "llama3.1": ("llama", 500000.0, 131072, LLAMA3),
    "llama3.2": ("llama", 500000.0, 131072, LLAMA3 | {"factor": 32.0}),
    "mistral": ("mistral", 1000000.0, 32768, None),
    "qwen2.5-yarn": ("qwen2", 1000000.0, 32768, YARN),
    "yarn-betas": ("qwen3", 1000000.0, 40960, YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False}),
    "yarn-mscale": ("qwen2", 10000.0, 163840, YARN | {"factor": 40, "mscale": 1.0, "mscale_all_dim": 0.7}),
    "yarn-attention": ("qwen2", 1000000.0, 131072, YARN | {"attention_factor": 1.25}),
    "qwen2-vl": ("qwen2_vl_text", 1000000.0, 32768, CHUNKED),
    "qwen2.5-vl": ("qwen2_5_vl_text", 1000000.0, 128000, CHUNKED),
    "qwen2.5-vl-yarn": ("qwen2_5_vl_text", 1000000.0, 128000, YARN | {"mrope_section": [16, 24, 24]}),
    "qwen3-vl": ("qwen3_vl_text", 5000000.0, 262144, INTERLEAVED),
    "qwen3-vl-yarn": ("qwen3_vl_text", 5000000.0, 262144, INTERLEAVED | YARN | {"factor": 3.0}),
}
MULTIMODAL = [name for name, variant in VARIANTS.items() if "vl" in variant[0]]


def config_json(name: str) -> dict[str, Any]:
    model_type, theta, longest, scaling = VARIANTS[name]
    rope = {"rope_theta": theta, "max_position_embeddings": longest}
    # transformers writes into the mapping that it is given.
    return {
        "model_type": model_type,
        **SIZES,
        **rope,
        "rope_scaling": None if scaling is None else dict(scaling),
    }


def read(name: str) -> TextConfig:
    return TextConfig.from_config(config_json(name), tie_word_embeddings=False)


def theirs(name: str) -> Any:
    """transformers' rotary module for the same config.json."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    config, module = {
        "llama": (transformers.LlamaConfig, LlamaRotaryEmbedding),
        "mistral": (transformers.MistralConfig, MistralRotaryEmbedding),
        "qwen2": (transformers.Qwen2Config, Qwen2RotaryEmbedding),
        "qwen2_vl_text": (Qwen2VLTextConfig, Qwen2VLRotaryEmbedding),
        "qwen2_5_vl_text": (Qwen2_5_VLTextConfig, Qwen2_5_VLRotaryEmbedding),
        "qwen3": (transformers.Qwen3Config, Qwen3RotaryEmbedding),
        "qwen3_vl_text": (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding),
    }[VARIANTS[name][0]]
    return module(config(**config_json(name)))


def tables(module: Any, positions: np.ndarray) -> list[np.ndarray]:
    """Cosines and sines (C, T, D/2) of a rotary module; it gives each pair twice."""
    import torch

    both = module(torch.zeros(1), torch.from_numpy(positions))
    return [table[..., : table.shape[-1] // 2].numpy() for table in both]


every_variant = pytest.mark.parametrize("name", VARIANTS)


@every_variant
def test_frequencies_are_those_of_transformers(name: str) -> None:
    text, module = read(name), theirs(name)
    found = inverse_frequencies(text.rope, text.head_dim)
    assert found.dtype == np.float32
    # Far positions multiply a difference here: all but the last bit must agree.
    assert np.allclose(found, module.inv_freq.numpy(), rtol=2e-7, atol=0)
    assert attention_scale(text.rope) == pytest.approx(module.attention_scaling, rel=1e-7)


@every_variant
def test_tables_are_those_of_transformers(name: str) -> None:
    positions = np.array([[*range(500), 1023, 2047, 4095]])
    found = RotaryEmbedding(read(name), 4096)(positions)
    for mine, other in zip(found, tables(theirs(name), positions), strict=True):
        assert mine.dtype == np.float32
        assert np.abs(mine - other).max() <= 1e-5


@pytest.mark.parametrize("name", MULTIMODAL)
def test_three_axes_are_those_of_transformers(name: str) -> None:
    draw = np.random.Generator(np.random.PCG64(3))
    positions = draw.integers(0, 2000, (3, 2, 50))
    found = RotaryEmbedding(read(name), 2000)(positions)
    for mine, other in zip(found, tables(theirs(name), positions), strict=True):
        assert mine.shape == (2, 50, 64)
        assert np.abs(mine - other).max() <= 1e-5


@pytest.mark.parametrize("name", MULTIMODAL)
def test_axes_that_agree_are_one(name: str) -> None:
    rope, positions = RotaryEmbedding(read(name), 64), np.array([[5, 6], [31, 63]])
    for one, three in zip(rope(positions), rope(np.stack([positions] * 3)), strict=True):
        assert np.array_equal(one, three)


def test_every_axis_turns_its_own_pairs() -> None:
    rope = RotaryEmbedding(read("qwen3-vl"), 8)
    still = rope(np.zeros((1, 1), np.int64))[0][0, 0]
    turned = []
    for axis in range(3):
        positions = np.zeros((3, 1, 1), np.int64)
        positions[axis] = 7
        turned.append(rope(positions)[1][0, 0] != 0)
    assert (still == 1).all()
    assert [int(pairs.sum()) for pairs in turned] == [24, 20, 20]
    assert (np.sum(turned, axis=0) == 1).all()


def test_relative_positions_are_what_counts() -> None:
    """Scores of rotated vectors depend on the distance alone."""
    cos, sin = RotaryEmbedding(read("llama3.1"), 512)(np.array([3, 10, 403, 410]))
    q, k = np.random.Generator(np.random.PCG64(1)).standard_normal((2, 2, 64))

    def turn(x: np.ndarray, i: int) -> np.ndarray:
        return np.concatenate([x[0] * cos[i] - x[1] * sin[i], x[1] * cos[i] + x[0] * sin[i]])

    near, far = turn(q, 0) @ turn(k, 1), turn(q, 2) @ turn(k, 3)
    assert near == pytest.approx(far, abs=1e-3)


def test_a_table_ends_where_it_ends() -> None:
    with pytest.raises(IndexError):
        RotaryEmbedding(read("vicuna"), 16)(np.array([[16]]))


def test_plain_positions_have_one_axis() -> None:
    with pytest.raises(ValueError, match="one axis"):
        RotaryEmbedding(read("vicuna"), 16)(np.zeros((3, 1, 1), np.int64))


def test_dynamic_is_default_up_to_its_length_and_refused_beyond() -> None:
    text = read("dynamic")
    positions = np.arange(4096)
    for mine, plain in zip(
        RotaryEmbedding(text, 4096)(positions), RotaryEmbedding(read("vicuna"), 4096)(positions), strict=True
    ):
        assert np.array_equal(mine, plain)
    with pytest.raises(ConfigError, match=r"context_length is 4097.*at most 4096"):
        RotaryEmbedding(text, 4097)


def test_yarn_without_a_factor_takes_the_ratio_of_the_lengths() -> None:
    config = config_json("qwen2.5-yarn") | {"max_position_embeddings": 131072}
    config["rope_scaling"].pop("factor")
    text, given = TextConfig.from_config(config, tie_word_embeddings=False), read("qwen2.5-yarn")
    assert np.array_equal(inverse_frequencies(text.rope, 128), inverse_frequencies(given.rope, 128))
    assert attention_scale(text.rope) == attention_scale(given.rope)


def test_new_and_old_spelling_are_the_same() -> None:
    old = config_json("llama3.1")
    new = {key: value for key, value in old.items() if key not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = {**LLAMA3, "rope_theta": 500000.0}
    found = [TextConfig.from_config(config, tie_word_embeddings=False).rope for config in (old, new)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vicuna", {"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ("vicuna", {"rope_scaling": {"type": "linear"}}, "factor is missing; rope_type 'linear' needs it"),
        ("vicuna", {"rope_scaling": {"type": "linear", "factor": "4"}}, "factor must be a number, got '4'"),
        ("vicuna", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1"),
        ("vicuna", {"rope_scaling": {"type": "linear", "scale": 4.0}}, "scale is not a known key"),
        ("vicuna", {"rope_scaling": [4]}, "rope_parameters must be an object"),
        ("vicuna", {"rope_scaling": {"full_attention": {}}}, "full_attention is not a known key"),
        ("vicuna", {"rope_scaling": CHUNKED}, "rope_type 'mrope' is not supported"),
        ("vicuna", {"rope_scaling": {"mrope_section": [16, 24, 24]}}, "does not have"),
        ("vicuna", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("vicuna", {"rope_theta": 0}, "rope_theta must be more than 1"),
        ("qwen2.5-yarn", {"rope_scaling": {**YARN, "beta_slow": 0}}, "beta_slow must be positive, got 0"),
        ("llama3.1", {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "0 < low_freq_factor < high"),
        ("qwen2-vl", {"rope_scaling": {**CHUNKED, "mrope_interleaved": True}}, "does not have"),
        ("qwen2-vl", {"rope_scaling": {**CHUNKED, "mrope_section": [16, 24]}}, "sum 64"),
        ("qwen3-vl", {"rope_scaling": {**INTERLEAVED, "mrope_section": [24, 24, 24]}}, "sum 64"),
    ],
)
def test_what_is_not_understood_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TextConfig.from_config(config_json(name) | change, tie_word_embeddings=False)
