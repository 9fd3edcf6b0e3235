"""The cached reference: image features of one fixed picture of pure noise, which shows nothing."""

from __future__ import annotations

from pathlib import Path

from safecode_trt.export.embeddings import write_tensors
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.models import ModelSpec
from safecode_trt.runtime.image import noise_views, normalise
from safecode_trt.runtime.image_features import PictureInput, encode_pictures
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.runtime.session import Session

__all__ = ["write_reference"]


def write_reference(
    session: Session, spec: ModelSpec, prompts: PromptBuilder, defaults: SafeCodeDefaults, path: Path
) -> None:
    """Encodes the picture that the defaults describe and writes its features in float32."""
    layout = spec.reference_layout
    views = normalise(noise_views(layout, defaults.reference_sigma, defaults.reference_seed), spec)
    # A vision encoder that reads the request gets an empty one: the picture is for every request.
    words = prompts.words([Message(role="user", text="")]) if spec.words_tokenizer else None
    (features,) = encode_pictures(session, spec, [PictureInput(layout=layout, views=views, words=words)])
    write_tensors(path, {name: (x, "F32") for name, x in features.items()})
