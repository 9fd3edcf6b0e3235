"""Pictures of a request through the vision encoder: as few calls as their shapes allow."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safecode_trt.models import Features, Layout, ModelSpec
from safecode_trt.policy.base import DiffusionNoise, Noise, PixelNoise
from safecode_trt.runtime.contexts import FeatureKey
from safecode_trt.runtime.image import Pixels, add_noise, diffuse, normalise, picture_views
from safecode_trt.runtime.request import Request
from safecode_trt.runtime.session import Session

__all__ = ["PictureInput", "encode_pictures", "picture_features"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureInput:
    """A picture made ready: its layout, its normalised views (3, height, width), and the words asked about it."""

    layout: Layout
    views: Sequence[NDArray[np.float32]]
    words: NDArray[np.int64] | None = None


def picture_features(
    session: Session,
    spec: ModelSpec,
    request: Request,
    *,
    seed: int,
    reference: Callable[[], Features],
    known: Container[FeatureKey] = (),
) -> dict[FeatureKey, Features]:
    """The features of everything that the rows of a request look at and that is not known.

    `reference` reads those of the cached picture.
    """
    wanted = [key for key in dict.fromkeys(request.feature_keys) if key not in known]
    if not request.images or not wanted:
        return {}
    shown = [
        picture_views(*pair, spec.resample) for pair in zip(request.images, request.layouts, strict=True)
    ]
    inputs: dict[FeatureKey, list[PictureInput]] = {}
    for key in wanted:
        picture, prompt = key
        if picture != "cached":
            words = None if prompt is None else request.words[prompt]
            noise = request.plan.noise if picture == "noised" else None
            inputs[key] = [
                PictureInput(layout=layout, views=own, words=words)
                for layout, own in zip(request.layouts, _made_ready(shown, noise, spec, seed), strict=True)
            ]
    encoded = iter(encode_pictures(session, spec, [one for pictures in inputs.values() for one in pictures]))
    features = {key: _join([next(encoded) for _ in pictures]) for key, pictures in inputs.items()}
    for key in wanted:
        if key[0] == "cached":
            stand_in = reference()
            features[key] = _join([spec.reference_features(stand_in, layout) for layout in request.layouts])
    return features


def encode_pictures(session: Session, spec: ModelSpec, pictures: Sequence[PictureInput]) -> list[Features]:
    """The features of each picture; pictures whose inputs have the same shapes share a call."""
    inputs = [spec.vision_inputs(picture.views, picture.layout, picture.words) for picture in pictures]
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, arrays in enumerate(inputs):
        groups.setdefault(tuple(x.shape[1:] for x in arrays.values()), []).append(number)
    features: dict[int, Features] = {}
    for members in groups.values():
        names = inputs[members[0]]
        outputs = session.encode({name: np.concatenate([inputs[n][name] for n in members]) for name in names})
        start = 0
        for number in members:
            stop = start + len(next(iter(inputs[number].values())))
            own = {name: x[start:stop] for name, x in outputs.items()}
            features[number] = spec.features(own, pictures[number].layout)
            start = stop
    return [features[number] for number in range(len(pictures))]


def _made_ready(
    shown: Sequence[Sequence[Pixels]], noise: Noise | None, spec: ModelSpec, seed: int
) -> list[list[Pixels]]:
    """The views of pictures normalised, under noise on the pixels or after normalisation, as its kind wants."""
    if isinstance(noise, PixelNoise):
        shown = add_noise(shown, noise.sigma, seed)
    normalised = [normalise(views, spec) for views in shown]
    return diffuse(normalised, noise.step, seed) if isinstance(noise, DiffusionNoise) else normalised


def _join(pictures: Sequence[Features]) -> Features:
    """The features of the pictures of one prompt, one after another."""
    return {name: np.concatenate([features[name] for features in pictures]) for name in pictures[0]}
