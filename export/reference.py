"""The cached reference: image features of one fixed picture of pure noise, which shows nothing."""

from __future__ import annotations

from pathlib import Path

from safecode_trt.export.embeddings import write_tensor
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.models import ModelSpec
from safecode_trt.runtime.image import noise_picture, normalise
from safecode_trt.runtime.session import Session

__all__ = ["write_reference"]


def write_reference(session: Session, spec: ModelSpec, defaults: SafeCodeDefaults, path: Path) -> None:
    """Encodes the picture that the defaults describe and writes `image_features` (N, E) in float32."""
    picture = noise_picture(spec.image_size, defaults.reference_sigma, defaults.reference_seed)
    (features,) = session.encode(normalise(picture, spec))
    write_tensor(path, "image_features", features, "F32")
