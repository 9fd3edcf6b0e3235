"""The settings of a text decoder, read from config.json as transformers reads them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.models import TextConfig
from safecode_trt.models.text_config import TEXT_TYPES
from tests.text_only import text_only

# Text models that have no name of their own in transformers: the module and the class.
VL = {
    "qwen2_vl_text": ("qwen2_vl", "Qwen2VLText"),
    "qwen2_5_vl_text": ("qwen2_5_vl", "Qwen2_5_VLText"),
    "qwen3_vl_text": ("qwen3_vl", "Qwen3VLText"),
}


def config_class_of(model_type: str) -> Any:
    pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    package, family = VL[model_type]
    return getattr(
        importlib.import_module(f"transformers.models.{package}.configuration_{package}"), f"{family}Config"
    )


@pytest.mark.parametrize("model_type", TEXT_TYPES)
@pytest.mark.parametrize(
    "given", [{}, {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16}]
)
def test_keys_that_are_missing_are_what_transformers_assumes(model_type: str, given: dict[str, int]) -> None:
    theirs = config_class_of(model_type)(**given)
    text = TextConfig.from_config({"model_type": model_type, **given}, tie_word_embeddings=False)
    keys = [*TEXT_TYPES["llama"].defaults.keys() - {"hidden_act", "attention_bias", "mlp_bias", "head_dim"}]
    assert {key: getattr(text, key) for key in keys} == {key: getattr(theirs, key) for key in keys}
    assert theirs.hidden_act == "silu"
    heads = theirs.hidden_size // theirs.num_attention_heads
    assert text.head_dim == (getattr(theirs, "head_dim", None) or heads)
    assert text.rope.rope_theta == theirs.rope_parameters["rope_theta"]
    assert text.o_bias == getattr(theirs, "attention_bias", False)
    assert text.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert text.sliding_window == getattr(theirs, "sliding_window", None)


def test_llava_keeps_only_a_few_keys() -> None:
    found = TextConfig.from_config(
        {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        tie_word_embeddings=False,
    )
    assert (found.hidden_size, found.intermediate_size, found.num_hidden_layers) == (4096, 11008, 32)
    assert (found.num_key_value_heads, found.head_dim, found.vocab_size) == (32, 128, 32064)
    assert (found.rms_norm_eps, found.max_position_embeddings) == (1e-5, 4096)


def test_qwen2_vl_keeps_the_decoder_at_the_top() -> None:
    flat = {"model_type": "qwen2_vl", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    nested = {"model_type": "qwen2_vl_text", "rope_parameters": {"mrope_section": [16, 24, 24]}}
    found = [TextConfig.from_config(config, tie_word_embeddings=False) for config in (flat, nested)]
    assert found[0] == found[1]


def test_a_file_without_a_model_type_is_what_the_family_says() -> None:
    assert TextConfig.from_config({}, tie_word_embeddings=False).num_key_value_heads == 32
    found = TextConfig.from_config({}, tie_word_embeddings=False, model_type="mistral")
    assert found.num_key_value_heads == 8


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 100}, None),
        ({"model_type": "qwen2", "sliding_window": 100, "use_sliding_window": True}, 100),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 32}, None),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"] * 32}, None),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 32},
            4096,
        ),
    ],
)
def test_windows(config: dict[str, Any], window: int | None) -> None:
    pytest.importorskip("onnx_ir")
    from safecode_trt.export.export_config import ExportConfig
    from safecode_trt.export.package import geometry

    text = TextConfig.from_config(config, tie_word_embeddings=False)
    assert text.sliding_window == window
    spec = text_only(text)
    assert geometry(spec, ExportConfig()).context_length == min(window or 4096, 4096)
    if window:
        with pytest.raises(ConfigError, match=f"context_length is {window + 1}.*sliding_window is {window}"):
            geometry(spec, ExportConfig(context_length=window + 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "phi3"}, "text model_type 'phi3' is not supported; known: llama, mistral"),
        ({"model_type": "qwen3_moe"}, "text model_type 'qwen3_moe' is not supported"),
        ({"num_experts": 8}, "num_experts is 8; mixtures of experts"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        (
            {"model_type": "qwen2", "layer_types": ["chunked_attention"]},
            "'chunked_attention'; supported: full_a",
        ),
        ({"hidden_size": "4096"}, "hidden_size must be a positive integer, got '4096'"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a number"),
        ({"num_key_value_heads": 5}, "num_key_value_heads that divides"),
        ({"head_dim": 65}, "even head_dim"),
    ],
)
def test_what_is_not_supported_is_one_clear_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TextConfig.from_config(config, tie_word_embeddings=False)
