"""The input/output table of every graph: what `export` promises and what `runtime` checks.

One alphabet everywhere: C contexts, T new tokens, CAP positions that the cache has room for now, L layers,
Q positions of a row whose logits are wanted, H KV heads, Hq query heads, D head size, E hidden size, V vocabulary,
N image tokens, P pictures (or tiles of pictures), S positions of pictures that cross attention looks at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_FORMS",
    "HEAD_PRECISIONS",
    "HIDDEN",
    "MASKED",
    "PRECISIONS",
    "TAP_PLACES",
    "VISION_PRECISIONS",
    "Activations",
    "AttentionForm",
    "Geometry",
    "GraphSpec",
    "HeadPrecision",
    "Precision",
    "Tap",
    "TapPlace",
    "TensorSpec",
    "VisionPrecision",
    "activation_dtype",
    "decoder_graph",
    "square_vision_graph",
    "vision_dtype",
]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
HeadPrecision = Literal["int8", "int4"]
HEAD_PRECISIONS: tuple[HeadPrecision, ...] = ("int8", "int4")
VisionPrecision = Literal["fp32", "fp16", "int8"]
VISION_PRECISIONS: tuple[VisionPrecision, ...] = ("fp32", "fp16", "int8")
AttentionForm = Literal["portable", "decomposed"]
ATTENTION_FORMS: tuple[AttentionForm, ...] = ("portable", "decomposed")
# Of the activations, the cache and the mask. Quantised weights leave a choice between the first two.
Activations = Literal["fp32", "fp16", "bf16"]
ACTIVATIONS: tuple[Activations, ...] = ("fp32", "fp16")
DTYPES: dict[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# What a mask has where nothing is to be seen. Far below any score, and still finite in float16: a softmax weight of
# exactly 0 without infinities.
MASKED = -30000.0
HIDDEN = "hidden"
"""The output with the states after the final norm, where a bundle has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of a model, in config.json's words; context_length is the most positions that a row may hold.

    image_seq_len are the tokens of the reference picture, 0 in a text-only bundle; how many another has may depend
    on its size.
    """

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    image_seq_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, element type (numpy's word) and shape of a graph input or output; a string is a free axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """The inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


TapPlace = Literal["attention", "mlp", "heads"]
TAP_PLACES: tuple[TapPlace, ...] = ("attention", "mlp", "heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A place in a layer whose values can be read and added to while the decoder runs.

    `attention` is what o_proj puts out, `mlp` what the MLP does, both before they are added to the hidden states;
    `heads` is what goes into o_proj, (C, T, Hq * D).
    """

    place: TapPlace
    layer: int

    def __str__(self) -> str:
        return f"{self.place}:{self.layer}"

    @property
    def steer(self) -> str:
        """The input whose values are added at the place."""
        return f"steer.{self.layer}.{self.place}"

    @property
    def read(self) -> str:
        """The output with the values of the place before anything is added."""
        return f"read.{self.layer}.{self.place}"

    def width(self, geometry: Geometry) -> int:
        """How many values a token has there."""
        heads = geometry.num_attention_heads * geometry.head_dim
        return heads if self.place == "heads" else geometry.hidden_size


def activation_dtype(precision: Precision, activations: Activations = "fp32") -> str:
    """The type of the decoder's activations, its cache and its mask: in int8 and int4 the one that was chosen."""
    return DTYPES.get(precision, DTYPES[activations])


def vision_dtype(precision: Precision, activations: Activations = "fp32") -> str:
    """The type of the vision encoder's activations.

    Beside a bf16 decoder float32: numpy has no bfloat16, and the vision encoder then runs on the CPU too.
    """
    return "float16" if activation_dtype(precision, activations) == "float16" else "float32"


def decoder_graph(
    geometry: Geometry,
    precision: Precision,
    family_inputs: tuple[TensorSpec, ...] = (),
    *,
    activations: Activations = "fp32",
    hidden: bool = False,
    taps: tuple[Tap, ...] = (),
) -> GraphSpec:
    """The decoder: embeddings in, logits of Q positions per row out, the cache updated in place.

    `attention_bias` is additive and holds causality, padding and row lengths; it is as wide as the cache that
    is bound, all of which is read. `logit_positions` says which of the T positions each row wants logits for;
    `write_indices` where each row's new keys go. With `hidden` the states after the final norm come out at all T
    positions. Each tap adds an input, of which zeros change nothing, and an output. `family_inputs` are what
    `ModelSpec.decoder_inputs` adds.
    """
    g, dtype = geometry, activation_dtype(precision, activations)
    cache = ("C", g.num_key_value_heads, "CAP", g.head_dim)
    parts = [(i, part) for i in range(g.num_hidden_layers) for part in ("key", "value")]
    return GraphSpec(
        inputs=(
            TensorSpec(name="inputs_embeds", dtype=dtype, shape=("C", "T", g.hidden_size)),
            TensorSpec(name="rope_cos", dtype=dtype, shape=("C", "T", g.head_dim // 2)),
            TensorSpec(name="rope_sin", dtype=dtype, shape=("C", "T", g.head_dim // 2)),
            TensorSpec(name="write_indices", dtype="int64", shape=("C",)),
            TensorSpec(name="attention_bias", dtype=dtype, shape=("C", 1, "T", "CAP")),
            TensorSpec(name="logit_positions", dtype="int64", shape=("C", "Q")),
            *family_inputs,
            *(TensorSpec(name=tap.steer, dtype=dtype, shape=("C", "T", tap.width(g))) for tap in taps),
            *(TensorSpec(name=f"past_key_values.{i}.{part}", dtype=dtype, shape=cache) for i, part in parts),
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=("C", "Q", g.vocab_size)),
            *(TensorSpec(name=HIDDEN, dtype=dtype, shape=("C", "T", g.hidden_size)) for _ in range(hidden)),
            *(TensorSpec(name=tap.read, dtype=dtype, shape=("C", "T", tap.width(g))) for tap in taps),
            *(TensorSpec(name=f"present.{i}.{part}", dtype=dtype, shape=cache) for i, part in parts),
        ),
    )


def square_vision_graph(image_size: int, tokens: int, hidden_size: int, dtype: str) -> GraphSpec:
    """The commonest vision encoder: P square pictures in, as many image features out of each."""
    return GraphSpec(
        inputs=(TensorSpec(name="pixel_values", dtype=dtype, shape=("P", 3, image_size, image_size)),),
        outputs=(TensorSpec(name="image_features", dtype=dtype, shape=("P", tokens, hidden_size)),),
    )
