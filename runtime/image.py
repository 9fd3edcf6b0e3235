"""Pictures: opened with suspicion, cut into tiles, noised, normalised. PIL and numpy."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from safecode_trt.errors import PictureError
from safecode_trt.models import ModelSpec, Tiling

__all__ = [
    "MAX_PIXELS",
    "PictureSource",
    "add_noise",
    "noise_picture",
    "normalise",
    "open_picture",
    "tile_pixels",
]

PictureSource = str | Path | bytes | Image.Image
MAX_PIXELS = 100_000_000


def open_picture(source: PictureSource) -> Image.Image:
    """Any picture as upright RGB: first frame, EXIF rotation applied, transparency on white.

    Raises:
        PictureError: the file is missing, is no picture, is truncated, or has more than MAX_PIXELS pixels.
    """
    name = str(source) if isinstance(source, str | Path) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opening = nullcontext(source) if isinstance(source, Image.Image) else Image.open(_stream(source))
        with opening as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise PictureError(_too_large(name, f"{opened.width} x {opened.height}"))
            return _upright_rgb(opened)
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist; expected a picture file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(_too_large(name, str(error))) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture in a format that can be read") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise PictureError(f"{name} cannot be decoded: {error}") from error


def tile_pixels(image: Image.Image, tiling: Tiling, resample: int) -> NDArray[np.float32]:
    """(P, S, S, 3) in [0, 1]: the tiles row by row, the whole picture last."""
    how, size = Image.Resampling(resample), tiling.tile
    for width, height in tiling.resizes:
        image = image.resize((width, height), how)
    boxes = [(c * size, r * size) for r in range(tiling.rows) for c in range(tiling.columns)]
    tiles = [image.crop((x, y, x + size, y + size)) for x, y in boxes] + [image.resize((size, size), how)]
    return np.stack([np.asarray(tile, dtype=np.uint8) for tile in tiles]).astype(np.float32) / np.float32(255)


def add_noise(pixels: NDArray[np.float32], sigma: float, seed: int) -> NDArray[np.float32]:
    """Gaussian noise on [0, 1] pixels, clamped (arXiv 2509.19212); the same seed gives the same picture.

    `pixels` are at the model's resolution: noise on a large photo would be averaged away by resizing.
    """
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + np.float32(sigma) * noise, 0, 1)


def noise_picture(size: int, sigma: float, seed: int) -> NDArray[np.float32]:
    """A (1, S, S, 3) picture of noise on mid-grey, which shows nothing."""
    return add_noise(np.full((1, size, size, 3), 0.5, np.float32), sigma, seed)


def normalise(pixels: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """(P, S, S, 3) in [0, 1] to the vision encoder's (P, 3, S, S)."""
    mean, std = np.array(spec.image_mean, np.float32), np.array(spec.image_std, np.float32)
    scaled = pixels * np.float32(255 * spec.rescale_factor)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))


def _stream(source: str | Path | bytes) -> str | Path | BytesIO:
    return BytesIO(source) if isinstance(source, bytes) else source


def _too_large(name: str, found: str) -> str:
    return f"{name} is too large ({found}); at most {MAX_PIXELS} pixels are decoded, make it smaller"


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        upright.load()
        return upright
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")
