"""What bundle.json says: frozen records, and the rules that need no file to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from safecode_trt.calibration import Calibration
from safecode_trt.config import Prompts, SafeCodeConfig
from safecode_trt.contract import (
    Activations,
    AttentionForm,
    Geometry,
    GraphSpec,
    Precision,
    Tap,
    TensorSpec,
    VisionPrecision,
    decoder_graph,
)
from safecode_trt.engine_entry import EngineEntry
from safecode_trt.errors import BundleError
from safecode_trt.parity_report import Parity

__all__ = [
    "BUNDLE_JSON",
    "DECODER",
    "EMBEDDINGS",
    "FIRST_UPGRADABLE",
    "REFERENCE",
    "SCHEMA_VERSION",
    "VISION_ENCODER",
    "FileEntry",
    "Manifest",
    "Method",
    "Quantization",
    "RefusalFilter",
    "SafeCodeDefaults",
    "Source",
    "SpecialTokens",
    "check_relative",
]

SCHEMA_VERSION = 6
FIRST_UPGRADABLE = 6
"""The oldest schema whose graphs are today's; `safecode-trt upgrade` rewrites the manifests from it on."""
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
    """Token ids that the runtime must know; the tokenizer files say the rest. Text-only bundles have no image token."""

    eos_token_ids: tuple[int, ...]
    image_token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalFilter:
    """Which refusal tokens (by id, with their counts in `found`) begin more than `share` of the harmless `answers`."""

    answers: int
    share: float
    dropped: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeCodeDefaults:
    """Prompts, token ids and settings of steered decoding for this model.

    `judge_template` holds {request}. The two verdict tokens are the judge's possible first tokens; together they
    must have a probability of at least `verdict_floor`, or there is no verdict. `caption_prompt` asks for a caption
    and `caption_judge_template` holds it and the request, for a judge that reads the scene in words. `reason_template`
    asks what in the scene is unsafe, and `explanation` holds the {reason} as it is put after a refusal.
    `refusal_tokens` are those of each of `refusal_phrases`, and `refusal_token_ids` the first ones in their spellings;
    None as `refusal_filter` means that nobody looked. `fallback_refusal` is what a fail-safe reply says. `settings` is
    the mode `safecode`.
    """

    judge_template: str
    safe_token_id: int
    unsafe_token_id: int
    caption_prompt: str
    caption_judge_template: str
    reason_template: str
    explanation: str
    refusal_phrases: tuple[str, ...]
    refusal_tokens: tuple[tuple[int, ...], ...]
    refusal_token_ids: tuple[int, ...]
    fallback_refusal: str
    settings: SafeCodeConfig
    prompts: Prompts = field(default_factory=Prompts)
    refusal_filter: RefusalFilter | None = None
    reference_seed: int = 0
    reference_sigma: float = 1.0
    verdict_floor: float = 0.0
    calibration: Calibration | None = None


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
class Source:
    """A model on the Hugging Face Hub: its name, the branch, tag or commit asked for, and the commit that it was."""

    name: str
    revision: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """bundle.json. `parity` is None when the export was told not to verify.

    `precision` is that of the decoder's weights, `activations` of all else in it. `quantization` has the tensors that
    are stored as codes, by the checkpoint's name in the decoder and by the graph's in the vision encoder. `max_tiles`
    is None for the checkpoint's own limit. `source` is None for a checkpoint in a folder of its own. `shape_nodes`
    names, by graph, the nodes that only compute shapes. `hidden` and `taps` are what the decoder
    has in addition to logits and cache.

    A text-only bundle has no vision encoder among its `graphs`, no `vision_precision`, no image token, an
    `image_seq_len` of 0 and no cached reference.
    """

    model_type: str
    precision: Precision
    activations: Activations
    vision_precision: VisionPrecision | None
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
    source: Source | None = None
    shape_nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: bool = False
    taps: tuple[Tap, ...] = ()
    schema_version: int = SCHEMA_VERSION
    engines: tuple[EngineEntry, ...] = ()

    def decoder_contract(self, family_inputs: tuple[TensorSpec, ...] = ()) -> GraphSpec:
        """The inputs and outputs that the decoder must have; `family_inputs` are the family's own."""
        return decoder_graph(
            self.geometry,
            self.precision,
            family_inputs,
            activations=self.activations,
            hidden=self.hidden,
            taps=self.taps,
        )

    def __post_init__(self) -> None:
        self._check_vision()
        for path in self.files:
            check_relative(path)
        for name, nodes in self.shape_nodes.items():
            if name not in self.graphs or not all(node and node.isprintable() for node in nodes):
                raise BundleError(
                    f"bundle.json: shape_nodes of {name!r}: expected names of nodes of one of the graphs; export again"
                )
        for graph in (graph for engine in self.engines for graph in engine.graphs.values()):
            if graph.file not in self.files:
                raise BundleError(
                    f"bundle.json: engine {graph.file!r} is not among the files",
                    fix="safecode-trt build BUNDLE",
                )

    @property
    def text_only(self) -> bool:
        """Whether the bundle has no vision encoder."""
        return VISION_ENCODER not in self.graphs

    def _check_vision(self) -> None:
        """What a vision encoder comes with is there if and only if it is."""
        parts = {
            "special_tokens.image_token_id": self.special_tokens.image_token_id is not None,
            "vision_precision": self.vision_precision is not None,
            "geometry.image_seq_len": self.geometry.image_seq_len > 0,
        }
        if wrong := [name for name, there in parts.items() if there == self.text_only]:
            verb = "has no" if self.text_only else "has a"
            raise BundleError(
                f"bundle.json {verb} vision encoder, which {wrong[0]} contradicts; export again"
            )


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
