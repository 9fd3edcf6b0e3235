"""What goes into a bundle in addition to graphs and weights: sizes, copied files, token ids, versions, hashes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safecode_trt.bundle import file_entry
from safecode_trt.contract import Geometry
from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.export.export_config import DEFAULT_CONTEXT_LENGTH, ExportConfig
from safecode_trt.manifest import FileEntry, SpecialTokens
from safecode_trt.models import ModelSpec
from safecode_trt.models.spec import read_json

__all__ = ["bundle_files", "copy_settings", "geometry", "settings_files", "special_tokens", "tool_versions"]

# Of the files with the image processor's settings there may be either; reading the spec has found one.
REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = (
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
TOOLS = ("safecode-trt", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "transformers")


def geometry(spec: ModelSpec, config: ExportConfig) -> Geometry:
    """The sizes of the model with the cache that was asked for.

    Raises:
        ConfigError: context_length is more than the model was made for.
    """
    text = spec.text
    # Attention in the graph looks at everything: the same as in a window as long as nothing leaves the window.
    limits = {
        "max_position_embeddings": text.max_position_embeddings,
        "sliding_window": text.sliding_window or text.max_position_embeddings,
    }
    length = config.context_length or min(*limits.values(), DEFAULT_CONTEXT_LENGTH)
    for name, longest in limits.items():
        if length > longest:
            raise ConfigError(
                f"is {length}, but the model's {name} is {longest}; choose at most {longest}",
                field="context_length",
            )
    return Geometry(
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        context_length=length,
        image_seq_len=spec.reference_layout.tokens,
    )


def settings_files(folder: Path, spec: ModelSpec) -> tuple[str, ...]:
    """The checkpoint's tokenizers and settings, which a bundle takes over, by their paths in it.

    Raises:
        CheckpointError: one that the runtime cannot do without is missing.
    """
    required = (*REQUIRED, *([spec.words_tokenizer] if spec.words_tokenizer else []))
    for name in required:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; the bundle needs it")
    return (*required, *(name for name in OPTIONAL if (folder / name).is_file()))


def copy_settings(folder: Path, target: Path, spec: ModelSpec) -> None:
    """Copies the checkpoint's tokenizers and settings unchanged.

    Raises:
        CheckpointError: one that the runtime cannot do without is missing, or one cannot be read.
    """
    for name in settings_files(folder, spec):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}") from error
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)


def special_tokens(folder: Path, spec: ModelSpec) -> SpecialTokens:
    """Token ids by generation_config.json, else config.json, else its text_config; and the family's own ends.

    Raises:
        CheckpointError: no file names a token that ends an answer, or an id is not in the vocabulary.
    """
    config = read_json(folder / "config.json")
    path = folder / "generation_config.json"
    sources = [read_json(path) if path.is_file() else {}, config, config.get("text_config") or {}]
    ends = _first(sources, "eos_token_id")
    if ends is None:
        raise CheckpointError(f"{folder}: neither generation_config.json nor config.json has an eos_token_id")
    ends = tuple(ends) if isinstance(ends, list) else (ends,)
    ends += tuple(token for token in spec.end_token_ids if token not in ends)
    size = spec.text.vocab_size
    image_token_id = None if spec.text_only else spec.image_token_id
    for token in (*ends, *([] if image_token_id is None else [image_token_id])):
        if not _is_token(token, size):
            raise CheckpointError(f"{folder}: token id {token!r} is not in the vocabulary of {size}")
    return SpecialTokens(image_token_id=image_token_id, eos_token_ids=ends)


def _is_token(number: Any, vocab_size: int) -> bool:
    return isinstance(number, int) and 0 <= number < vocab_size


def _first(sources: list[dict[str, Any]], key: str) -> Any:
    return next((source[key] for source in sources if source.get(key) is not None), None)


def bundle_files(folder: Path) -> Mapping[str, FileEntry]:
    """Size and hash of every file in the folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in paths}


def tool_versions() -> Mapping[str, str]:
    """The versions of the packages that have a part in an export."""
    versions = {}
    for name in TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
