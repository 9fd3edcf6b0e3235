"""Pictures: opened with suspicion, cut into tiles, noised, normalised. PIL and numpy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from safecode_trt.errors import PictureError
from safecode_trt.models import Layout, ModelSpec
from safecode_trt.models.layout import MAX_PIXELS, Frame, Size
from safecode_trt.runtime.picture_format import open_file

__all__ = [
    "MAX_PIXELS",
    "Pixels",
    "RawPicture",
    "add_noise",
    "diffuse",
    "noise_views",
    "normalise",
    "open_picture",
    "picture_views",
]

DIFFUSION_STEPS = 1000
Pixels = NDArray[np.float32]
RawPicture = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A file, its bytes, or a picture that is open; an array is (height, width, 3) in RGB."""
NUMBERS = ("I", "F")
"""Modes whose pixels are numbers of any range: nobody can say which of them is white."""


def open_picture(source: RawPicture, *, name: str = "the picture") -> Image.Image:
    """Any picture as upright RGB: first frame, EXIF rotation applied, transparency on white.

    `name` stands in errors about a source that is no path.

    Raises:
        PictureError: the file is missing, is no picture, is truncated, has more than MAX_PIXELS pixels or none, or its
            pixels are numbers without a range.
    """
    name = str(source) if isinstance(source, str | Path) else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opening = _opening(source, name)
        with opening as opened:
            if not opened.width * opened.height:
                raise PictureError(f"{name} has no pixels ({opened.width} x {opened.height})")
            if opened.width * opened.height > MAX_PIXELS:
                raise PictureError(_too_large(name, f"{opened.width} x {opened.height}"))
            if opened.mode in NUMBERS:
                raise PictureError(
                    f"{name} has mode {opened.mode}, numbers without a range; convert it to 8 bits a channel"
                )
            return _upright_rgb(opened)
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist; expected a picture file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(_too_large(name, str(error))) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture in a format that can be read") from error
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:
        raise PictureError(f"{name} cannot be decoded: {error}") from error


def picture_views(image: Image.Image, layout: Layout, resample: int) -> list[Pixels]:
    """The layout's views of a picture, each (height, width, 3) in [0, 1]."""
    how = Image.Resampling(resample)
    made: dict[tuple[Frame | Size | None, ...], Image.Image] = {}
    views = []
    for view in layout.views:
        steps = (view.frame, *view.resizes)
        if steps[:1] not in made:
            made[steps[:1]] = image if view.frame is None else _framed(image, view.frame)
        for done, size in enumerate(view.resizes, 1):
            if steps[: done + 1] not in made:
                made[steps[: done + 1]] = made[steps[:done]].resize(size, how)
        seen = made[steps] if view.box is None else made[steps].crop(view.box)
        views.append(np.asarray(seen, dtype=np.uint8).astype(np.float32) / np.float32(255))
    return views


def add_noise(pictures: Sequence[Sequence[Pixels]], sigma: float, seed: int) -> list[list[Pixels]]:
    """Gaussian noise on the [0, 1] views of pictures, clamped (arXiv 2509.19212); a seed is one noise.

    The views are at the model's resolution: noise on a large photo would be averaged away by resizing.
    """
    draw = np.random.Generator(np.random.PCG64(seed))

    def noised(view: Pixels) -> Pixels:
        return np.clip(view + np.float32(sigma) * draw.standard_normal(view.shape, dtype=np.float32), 0, 1)

    return [[noised(view) for view in views] for views in pictures]


def diffuse(pictures: Sequence[Sequence[Pixels]], step: int, seed: int) -> list[list[Pixels]]:
    """The normalised views of pictures at a step, 0 to 999, of VCD's diffusion (arXiv 2311.16922)."""
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, DIFFUSION_STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(np.cumprod(1 - betas)[step])
    signal, noise = np.float32(math.sqrt(kept)), np.float32(math.sqrt(1 - kept))
    draw = np.random.Generator(np.random.PCG64(seed))
    return [
        [signal * view + noise * draw.standard_normal(view.shape, dtype=np.float32) for view in views]
        for views in pictures
    ]


def noise_views(layout: Layout, sigma: float, seed: int) -> list[Pixels]:
    """The layout's views of noise on mid-grey, which shows nothing."""
    sizes = [view.size for view in layout.views]
    (views,) = add_noise([[np.full((h, w, 3), 0.5, np.float32) for w, h in sizes]], sigma, seed)
    return views


def normalise(views: Sequence[Pixels], spec: ModelSpec) -> list[Pixels]:
    """Pixels (height, width, 3) in [0, 1] to the vision encoder's (3, height, width)."""
    mean, std = np.array(spec.image_mean, np.float32), np.array(spec.image_std, np.float32)
    scale = np.float32(255 * spec.rescale_factor)
    return [np.ascontiguousarray(((view * scale - mean) / std).transpose(2, 0, 1)) for view in views]


def _framed(image: Image.Image, frame: Frame) -> Image.Image:
    framed = Image.new("RGB", frame.size, frame.colour)
    framed.paste(image, (-frame.box[0], -frame.box[1]))
    return framed


def _opening(source: object, name: str) -> AbstractContextManager[Image.Image]:
    """The picture until it is decoded; one of the caller's is not closed."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            found = f"{source.dtype} {source.shape}"
            raise PictureError(f"{name} is an array of {found}; expected uint8 (height, width, 3) in RGB")
        # A camera may write its next frame into the same memory.
        height, width, _ = source.shape
        return nullcontext(Image.frombytes("RGB", (width, height), source.tobytes()))
    if isinstance(source, str | Path | bytes):
        return open_file(source, name)
    raise PictureError(
        f"{name} is of type {type(source).__name__}; expected a path, bytes, a PIL image or a numpy array"
    )


def _too_large(name: str, found: str) -> str:
    return f"{name} is too large ({found}); at most {MAX_PIXELS} pixels are decoded, make it smaller"


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow's own conversion makes everything above 255 white
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode == "RGB" and "transparency" not in upright.info:
        upright.load()
        return upright
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")
