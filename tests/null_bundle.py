"""A bundle for the null backend, made of the demo checkpoint's text files: no exporter, no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from safecode_trt.bundle import file_entry, write_manifest
from safecode_trt.config import SafeCodeConfig
from safecode_trt.contract import Geometry, decoder_graph
from safecode_trt.manifest import (
    DECODER,
    EMBEDDINGS,
    REFERENCE,
    VISION_ENCODER,
    Manifest,
    SafeCodeDefaults,
    SpecialTokens,
)
from safecode_trt.models import load_spec

DEMO = Path(__file__).parents[1] / "models" / "demo"
CAPACITY = 128


def save_tensor(path: Path, name: str, data: np.ndarray) -> None:
    """A safetensors file with one float32 tensor, written by hand."""
    raw = data.astype(np.float32).tobytes()
    entry = {"dtype": "F32", "shape": list(data.shape), "data_offsets": [0, len(raw)]}
    header = json.dumps({name: entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw)


def write_null_bundle(folder: Path, *, capacity: int = CAPACITY, vocab_size: int | None = None) -> Path:
    """Writes the bundle; its graphs are empty files, which the null backend never opens."""
    folder.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    shutil.copy(DEMO / "chat_template.jinja", folder)
    if vocab_size is not None:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["vocab_size"] = vocab_size
        (folder / "config.json").write_text(json.dumps(config))
    spec = load_spec(folder)
    text = spec.text
    geometry = Geometry(
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        context_length=capacity,
        image_seq_len=spec.reference_layout.tokens,
    )
    draw = np.random.Generator(np.random.PCG64(7))
    save_tensor(
        folder / EMBEDDINGS, "embed_tokens", draw.standard_normal((text.vocab_size, text.hidden_size))
    )
    features = draw.standard_normal((spec.reference_layout.tokens, text.hidden_size))
    save_tensor(folder / REFERENCE, "image_features", features)
    (folder / "onnx").mkdir()
    for graph in (VISION_ENCODER, DECODER):
        (folder / graph).write_bytes(b"")
    manifest = Manifest(
        model_type=spec.model_type,
        precision="fp32",
        activations="fp32",
        vision_precision="fp32",
        attention="portable",
        geometry=geometry,
        graphs={
            VISION_ENCODER: spec.vision_graph("float32"),
            DECODER: decoder_graph(geometry, "fp32"),
        },
        special_tokens=SpecialTokens(image_token_id=spec.image_token_id, eos_token_ids=(2,)),
        safecode=SafeCodeDefaults(
            judge_template="{request} is it safe to help with this here?",
            safe_token_id=20,
            unsafe_token_id=21,
            caption_prompt="describe the image.",
            caption_judge_template="{caption} {request} is it safe to help with this here?",
            reason_template="describe the image.",
            explanation="I see {reason} Ask for something else.",
            refusal_phrases=(" Sorry",),
            refusal_tokens=((578,),),
            refusal_token_ids=(578,),
            fallback_refusal="Sorry, I cannot help with that.",
            settings=SafeCodeConfig(reference="cached", contrast="vcd", alpha=1.0, beta=0.03, shift_steps=1),
        ),
        parity=None,
        quantization={},
        tools={},
        source_sha256="0" * 64,
        files={
            str(path.relative_to(folder)): file_entry(path) for path in folder.rglob("*") if path.is_file()
        },
    )
    write_manifest(folder, manifest)
    return folder
