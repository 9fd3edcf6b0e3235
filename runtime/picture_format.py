"""Opens picture files of every format that Pillow has, and HEIC and HEIF through pillow-heif."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from safecode_trt.errors import PictureError

__all__ = ["open_file"]

# Brands of the box that begins such a file (ISO/IEC 14496-12 and 23008-12). mif1 is either: the other brands tell.
AVIF = {b"avif", b"avis"}
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def open_file(file: str | Path | bytes, name: str) -> Image.Image:
    """The picture in a file or in its bytes, not decoded yet; `name` stands in errors.

    Raises:
        PictureError: what reads this format is not installed.
        PIL.UnidentifiedImageError: it is in no format that can be read.
        OSError: it cannot be read.
    """
    try:
        return _open(file)
    except UnidentifiedImageError:
        brands = _brands(file)
        if brands & AVIF:
            raise PictureError(_without_avif(name)) from None
        if not brands & HEIF:
            raise
    try:
        from pillow_heif import register_heif_opener
    except ModuleNotFoundError as error:
        raise PictureError(
            f"{name} is a HEIC or HEIF picture, which pillow-heif reads; run: pip install 'safecode-trt[heif]'"
        ) from error
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return _open(file)


def _open(file: str | Path | bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # by which Pillow tells of formats that it was built without
        return Image.open(BytesIO(file) if isinstance(file, bytes) else file)


def _without_avif(name: str) -> str:
    from PIL import __version__, features

    if features.check("avif"):
        return f"{name} is a broken AVIF picture"
    return (
        f"{name} is an AVIF picture, and this Pillow ({__version__}) was built without AVIF; "
        "run: pip install --upgrade --force-reinstall --only-binary :all: pillow"
    )


def _brands(file: str | Path | bytes) -> set[bytes]:
    """The brands of a file in the ISO base media format, none of any other."""
    if isinstance(file, bytes):
        head = file[:64]
    else:
        with open(file, "rb") as opened:
            head = opened.read(64)
    if head[4:8] != b"ftyp":
        return set()
    box = head[8 : int.from_bytes(head[:4], "big")]
    return {box[:4], *(box[start : start + 4] for start in range(8, len(box), 4))}
