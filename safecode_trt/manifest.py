"""What bundle.json says: frozen records, and the rules that need no file to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from safecode_trt.config import SafeCodeConfig
from safecode_trt.contract import AttentionForm, Geometry, GraphSpec, Precision, VisionPrecision
from safecode_trt.errors import BundleError

__all__ = [
    "BUNDLE_JSON",
    "DECODER",
    "EMBEDDINGS",
    "REFERENCE",
    "SCHEMA_VERSION",
    "VISION_ENCODER",
    "FileEntry",
    "GraphParity",
    "Manifest",
    "Method",
    "Parity",
    "Quantization",
    "SafeCodeDefaults",
    "SpecialTokens",
    "check_relative",
]

SCHEMA_VERSION = 2
BUNDLE_JSON = "bundle.json"
VISION_ENCODER = "onnx/vision_encoder.onnx"
DECODER = "onnx/decoder.onnx"
EMBEDDINGS = "embed_tokens.safetensors"
REFERENCE = "reference_features.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Token ids that the runtime must know; the tokenizer files say the rest."""

    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeCodeDefaults:
    """Prompts, token ids and settings of SafeCoDe for this model.

    `judge_template` holds {request}. The two verdict tokens are the judge's possible first tokens. The
    refusal ids are the first tokens of `refusal_phrases`; `fallback_refusal` is what a fail-safe reply says.
    `settings` is the mode `safecode`; the mode `safecode-paper` always has the paper's.
    """

    judge_template: str
    safe_token_id: int
    unsafe_token_id: int
    refusal_phrases: tuple[str, ...]
    refusal_token_ids: tuple[int, ...]
    fallback_refusal: str
    settings: SafeCodeConfig
    reference_seed: int = 0
    reference_sigma: float = 1.0


Method = Literal["round-to-nearest", "scale-search", "gptq", "awq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a weight is stored as codes of `bits`, with a scale for every `block_size` inputs of an output.

    `block_size` None means one scale for an output. Symmetric codes have no zero points. `error` is the L2
    norm of what was lost over that of the weight; None where the checkpoint was quantised already.
    """

    bits: Literal[4, 8]
    block_size: int | None
    symmetric: bool = True
    method: Method = "round-to-nearest"
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParity:
    """How far a graph's outputs are from transformers' on the same inputs."""

    max_abs_difference: float
    max_rel_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The comparison with transformers in fp32: features, first-step logits, and tokens.

    `top1_agreement` is over all positions of the probes, given the same past; `greedy_agreement` the share of
    the first tokens of greedy replies up to the first that differs.
    """

    probes: int
    vision_encoder: GraphParity
    decoder: GraphParity
    top1_agreement: float
    greedy_agreement: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """bundle.json. `parity` is None when the export was told not to verify.

    `precision` is the decoder's. `quantization` has the tensors that are stored as codes, by the checkpoint's
    name in the decoder and by the graph's in the vision encoder. `max_tiles` is None for the checkpoint's own limit.
    """

    model_type: str
    precision: Precision
    vision_precision: VisionPrecision
    attention: AttentionForm
    geometry: Geometry
    graphs: Mapping[str, GraphSpec]
    special_tokens: SpecialTokens
    safecode: SafeCodeDefaults
    parity: Parity | None
    quantization: Mapping[str, Quantization]
    tools: Mapping[str, str]
    source_sha256: str
    files: Mapping[str, FileEntry]
    max_tiles: int | None = None
    schema_version: int = SCHEMA_VERSION
    engines: tuple[Mapping[str, object], ...] = field(default=())

    def __post_init__(self) -> None:
        for path in self.files:
            check_relative(path)


def check_relative(path: str) -> str:
    """A path of the manifest as it may be: relative, with forward slashes, inside the bundle.

    Raises:
        BundleError: the path is absolute, has '..', or is not in its plain form.
    """
    pure = PurePosixPath(path)
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or {"\\", "\0"} & set(path)
        or str(pure) != path
        or path == "."
    ):
        raise BundleError(f"bundle.json: file path {path!r} must be relative and stay inside the bundle")
    return path
