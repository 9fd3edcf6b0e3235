"""What must hold before a build begins: the graphs can be built, for these GPUs, in this memory."""

from __future__ import annotations

import re
from collections.abc import Mapping

from safecode_trt.bundle import Bundle
from safecode_trt.contract import activation_dtype
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError, ConfigError
from safecode_trt.export.engine_config import EngineConfig
from safecode_trt.manifest import DECODER, VISION_ENCODER, Manifest
from safecode_trt.runtime.device import cuda_device, free_memory

__all__ = ["require_buildable", "require_memory", "require_timing_cache", "targets", "why_not_portable"]

# The first versions with the operators of the portable form, and those of the oldest devices that are supported.
PORTABLE_FROM: Mapping[Flavour, tuple[int, int]] = {"tensorrt": (10, 15), "tensorrt-rtx": (1, 4)}
OLDEST: Mapping[Flavour, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}
COMMON_GPUS = ("86", "89", "120")  # desktop Ampere, Ada and Blackwell
# How often a build holds the weights at once, and what it takes in addition; a little above what was measured.
WEIGHT_COPIES, FIXED_BYTES = 3, 1_000_000_000


def require_buildable(manifest: Manifest, flavour: Flavour, version: str) -> None:
    """Refuses a decoder that this TensorRT is known not to build.

    Raises:
        BackendError: the message says what is needed, or how to export one that it does.
    """
    if _numbers(version) < OLDEST[flavour]:
        raise BackendError(f"{flavour} {version} is too old; expected {_dotted(OLDEST[flavour])} or later")
    asymmetric = [how for how in manifest.quantization.values() if not how.symmetric]
    if asymmetric:
        given = any(how.method in ("awq", "gptq") for how in asymmetric)
        helps = (
            "export the checkpoint that it was quantised from, or one that GPTQ has quantised symmetrically"
            if given
            else "export the checkpoint without --asymmetric, or with --precision fp16"
        )
        raise BackendError(
            f"the decoder has weights with zero points, and {flavour} takes symmetric ones only", fix=helps
        )


def why_not_portable(manifest: Manifest, flavour: Flavour, version: str) -> str | None:
    """Why this TensorRT does not take the portable form of the decoder; None if it does."""
    first = PORTABLE_FROM[flavour]
    if _numbers(version) < first:
        return f"{flavour} {version} lacks operators of the portable form, which {_dotted(first)} is the first to have"
    if activation_dtype(manifest.precision, manifest.activations) == "float32":
        return (
            f"{flavour} has no fused attention for float32 activations; to have it, export with --precision fp16, "
            "or int4 or int8 with --activations fp16"
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def targets(config: EngineConfig) -> tuple[str, ...]:
    """The compute capabilities to build for.

    Raises:
        BackendError: tensorrt needs a GPU to build on, and there is none.
        ConfigError: it is another than asked for.
    """
    asked = config.compute_capabilities
    if config.flavour == "tensorrt-rtx":
        return asked or COMMON_GPUS
    device = cuda_device()
    if device is None:
        raise BackendError(
            "tensorrt builds on the GPU that it builds for, and there is none here",
            fix="build on the device, or pass --flavour tensorrt-rtx for a desktop GPU",
        )
    here = (device.compute_capability,)
    if asked not in ((), here):
        raise ConfigError(
            f"must be {here[0]}, the GPU of this machine, for which alone tensorrt builds; got {', '.join(asked)}",
            field="compute_capabilities",
        )
    return here


def require_memory(bundle: Bundle, config: EngineConfig) -> None:
    """Refuses a build that would run out of memory, by the larger graph's weights and the workspace asked for.

    Raises:
        BackendError: there is less memory than the estimate.
    """
    files = bundle.manifest.files
    weights = max(
        sum(entry.bytes for name, entry in files.items() if name.startswith(graph))
        for graph in (VISION_ENCODER, DECODER)
    )
    workspace = (config.workspace_mib or 0) << 20
    needed = {"main memory": WEIGHT_COPIES * weights + FIXED_BYTES}
    free = {"main memory": free_memory()}
    if config.flavour == "tensorrt" and (device := cuda_device()) is not None:
        needed["GPU memory"], free["GPU memory"] = weights + workspace, device.free_memory
    for kind, needs in needed.items():
        has = free[kind]
        if has is not None and needs > has:
            raise BackendError(
                f"the build needs about {needs >> 20} MiB of {kind} ({weights >> 20} MiB of weights), "
                f"{has >> 20} MiB are free",
                fix="close other programs, or build on a larger machine",
            )


def require_timing_cache(config: EngineConfig) -> None:
    """Refuses a timing cache for which there is no place, before the build that it is of.

    Raises:
        ConfigError: it is a folder, or it would be in none.
    """
    path = config.timing_cache
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError(
            f"must be a file in a folder that exists, but {what}; name another", field="timing_cache"
        )
