"""The settings of rotary position embeddings, read strictly: an ignored key would mean wrong rotations.

Knows nothing of tables and positions; `runtime/rotary.py` computes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from safecode_trt.errors import CheckpointError, ConfigError
from safecode_trt.records import from_dict

__all__ = ["RopeConfig"]

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embeddings in the words of `rope_parameters`; absent keys are None.

    `mrope_section` is how many of the D/2 angles follow each of the three axes of a position (time, height,
    width), side by side or interleaved; None where a position is one number.
    """

    rope_type: RopeType
    rope_theta: float
    max_position_embeddings: int
    original_max_position_embeddings: int
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool = True
    mrope_section: tuple[int, ...] | None = None
    mrope_interleaved: bool = False

    def __post_init__(self) -> None:
        for key in REQUIRED.get(self.rope_type, ()):
            if getattr(self, key) is None:
                raise ConfigError(f"is missing; rope_type {self.rope_type!r} needs it", field=key)
        for key in ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"):
            if (value := getattr(self, key)) is not None and value <= 0:
                raise ConfigError(f"must be positive, got {value}", field=key)
        if self.rope_theta <= 1:
            raise ConfigError(f"must be more than 1, got {self.rope_theta}", field="rope_theta")
        if self.factor is not None and self.factor < 1:
            raise ConfigError(f"must be at least 1, got {self.factor}", field="factor")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and not 0 < low < high:
            raise ConfigError(f"expected 0 < low_freq_factor < high_freq_factor, got {low} and {high}")

    @classmethod
    def from_config(
        cls, text: Mapping[str, Any], *, max_position_embeddings: int, assumed: Mapping[str, Any]
    ) -> RopeConfig:
        """Reads `rope_parameters`, or `rope_scaling` with a separate `rope_theta`, as older files have it.

        `assumed` is what the text model_type has where the file is silent. Only where that has a
        `mrope_section` may the file have one.

        Raises:
            CheckpointError: a key is unknown, missing or of the wrong type, or the variant is not supported.
        """
        given = text.get("rope_scaling") or text.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise CheckpointError(f"config.json: rope_parameters must be an object, got {given!r}")
        rope = {
            **assumed,
            **_set(text, "rope_theta", "partial_rotary_factor"),
            **_set(given, *given),
            **_set(text, "original_max_position_embeddings"),  # transformers prefers the one outside
        }
        rope["rope_type"] = _rope_type(
            rope.pop("type", "default"), rope, multimodal="mrope_section" in assumed
        )
        if (partial := rope.pop("partial_rotary_factor", 1)) != 1:
            raise CheckpointError(f"partial_rotary_factor {partial!r} is not supported; expected 1")
        _check_axes(rope, assumed)
        rope.setdefault("original_max_position_embeddings", max_position_embeddings)
        rope["max_position_embeddings"] = max_position_embeddings
        try:
            return from_dict(cls, rope, "rope_parameters")
        except ConfigError as error:
            raise CheckpointError(f"config.json: {error}") from error


def _set(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Those of the keys that have a value."""
    return {key: mapping[key] for key in keys if mapping.get(key) is not None}


def _rope_type(old_key: str, rope: Mapping[str, Any], *, multimodal: bool) -> str:
    """The rope_type, which older files call type; there "mrope" is the default one with three axes."""
    name: str = rope.get("rope_type", old_key)
    name = "default" if name == "mrope" and multimodal else name
    if name not in get_args(RopeType):
        raise CheckpointError(
            f"rope_type {name!r} is not supported; supported: {', '.join(get_args(RopeType))}"
        )
    return name


def _check_axes(rope: Mapping[str, Any], assumed: Mapping[str, Any]) -> None:
    """How many axes a position has is a matter of the text model_type, not of the file."""
    section, interleaved = rope.get("mrope_section"), rope.get("mrope_interleaved", False)
    if (section is None) != ("mrope_section" not in assumed) or (
        interleaved != assumed.get("mrope_interleaved", False)
    ):
        raise CheckpointError(
            f"config.json: rope_parameters has mrope_section {section} and mrope_interleaved {interleaved}, "
            "which this text model_type does not have"
        )
