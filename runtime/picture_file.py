"""A picture's file read once: what the model sees, what the log names and what is kept are the same bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image

from safecode_trt import atomic
from safecode_trt.errors import ConfigError, PictureError
from safecode_trt.runtime.image import MAX_PIXELS, RawPicture, open_picture

__all__ = ["PictureFile", "PictureSource", "PictureStore", "as_images", "read_picture"]

LARGEST_FILE = 8 * MAX_PIXELS  # four channels of 16 bits, not compressed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureFile:
    """A decoded picture, the bytes of its file, and their SHA-256."""

    image: Image.Image
    data: bytes
    sha256: str


def read_picture(path: Path) -> PictureFile:
    """Reads a picture's file.

    Raises:
        PictureError: it is missing, too large, or no picture.
    """
    try:
        if path.exists() and not path.is_file():
            raise PictureError(f"{path} is not a file; expected a picture")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise PictureError(f"{path} has {size} bytes; at most {LARGEST_FILE} are read, make it smaller")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError(f"{path} does not exist; expected a picture file") from error
    except (OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    image = open_picture(data, name=str(path))
    return PictureFile(image=image, data=data, sha256=hashlib.sha256(data).hexdigest())


PictureSource = RawPicture | PictureFile
"""What is shown to a model: a picture in any form, or one that `read_picture` has read and decoded."""


def as_images(image: PictureSource | Sequence[PictureSource] | None) -> list[Image.Image]:
    """One picture, several, or none, each upright and in RGB; what is decoded already is taken as it is.

    Raises:
        PictureError: a picture cannot be used.
    """
    if image is None:
        return []
    several = isinstance(image, Sequence) and not isinstance(image, str | bytes | bytearray)
    sources = cast(Sequence[PictureSource], image if several else [image])
    return [each.image if isinstance(each, PictureFile) else open_picture(each) for each in sources]


class PictureStore:
    """A folder of pictures named by their SHA-256. What is there is never written again.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "it cannot be written to")
        except OSError as error:
            raise self._unusable(error) from error

    def keep(self, picture: PictureFile) -> Path:
        """Where the picture lies; it appears there whole or not at all, for its owner only.

        Raises:
            ConfigError: it could not be written.
        """
        place = self._folder / picture.sha256
        if place.exists():
            return place
        try:
            atomic.write_bytes(place, picture.data, mode=0o600)
        except OSError as error:
            raise self._unusable(error) from error
        return place

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"pictures cannot be stored in {self._folder}: {error.strerror}; choose another")
