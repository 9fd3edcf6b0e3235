"""Pictures of every kind become the vision encoder's input, or one clear error."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safecode_trt.errors import PictureError
from safecode_trt.models import Layout, View, load_spec
from safecode_trt.runtime.image import (
    add_noise,
    diffuse,
    noise_views,
    normalise,
    open_picture,
    picture_views,
)
from safecode_trt.runtime.picture_file import as_images, read_picture
from tests.null_bundle import DEMO

SPEC = load_spec(DEMO)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drawn(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x % 256, y % 256, (x * y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("I;16", (9, 7)) if mode == "I;16" else drawn(9, 7).convert(mode)
    assert open_picture(image).mode == "RGB"


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", None])
def test_16_bits_of_grey_keep_their_shades(kind: str | None, order: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], "<u2" if order == "little" else ">u2")
    image = Image.frombytes("I;16" if order == "little" else "I;16B", (3, 2), values.tobytes())
    opened = open_picture(image if kind is None else encoded(image, kind))
    assert np.array_equal(np.asarray(opened), np.repeat(values[..., None].astype(int) >> 8, 3, -1))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_no_shades(mode: str) -> None:
    with pytest.raises(PictureError, match=f"the picture has mode {mode}, numbers without a range"):
        open_picture(Image.new(mode, (3, 2)))


def test_an_array_is_a_picture_of_its_own() -> None:
    frame = np.asarray(drawn(8, 4)).copy()
    opened = open_picture(frame[:, ::2])
    expected = frame[:, ::2].copy()
    frame[:] = 0  # the camera goes on
    assert np.array_equal(np.asarray(opened), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Image.new("RGB", (0, 5)), r"has no pixels \(0 x 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"has no pixels \(5 x 0\)"),
        (np.zeros((4, 5), np.uint8), r"is an array of uint8 \(4, 5\); expected uint8 \(height, width, 3\)"),
        (np.zeros((4, 5, 3), np.float32), "is an array of float32"),
        (np.zeros((2, 4, 5, 3), np.uint8), "is an array of uint8"),
        (bytearray(b"abc"), "is of type bytearray; expected a path"),
        (7, "is of type int"),
    ],
)
def test_what_can_be_no_picture(source: Any, message: str) -> None:
    with pytest.raises(PictureError, match=f"the picture {message}"):
        as_images(source)


def test_one_picture_several_or_none(tmp_path: Path) -> None:
    picture, frame = drawn(2, 2), np.zeros((2, 2, 3), np.uint8)
    picture.save(tmp_path / "a.png")
    assert as_images(None) == [] and as_images(()) == []
    for one in (picture, frame, tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert [image.size for image in as_images(one)] == [(2, 2)]
    assert len(as_images([picture, frame])) == 2


def test_a_picture_that_is_decoded_is_not_decoded_again(tmp_path: Path) -> None:
    drawn(2, 2).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    (image,) = as_images(read)
    assert image is read.image


def test_transparency_is_seen_on_white() -> None:
    assert open_picture(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encoded(drawn(8, 4), "JPEG", exif=exif.tobytes())).size == (4, 8)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
@pytest.mark.parametrize("as_file", [True, False])
def test_pictures_of_phones(kind: str, as_file: bool, tmp_path: Path) -> None:
    """Made by pillow-heif and Pillow, upright or as a phone holds it, and seen by a process that begins without."""
    smooth = np.stack(np.meshgrid(np.linspace(0, 255, 96), np.linspace(40, 200, 64)), -1)
    pixels = np.concatenate([smooth, smooth.mean(-1, keepdims=True)], -1).astype(np.uint8)
    for orientation, expected in ((1, pixels), (6, np.rot90(pixels, -1)), (3, np.rot90(pixels, 2))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = phone_picture(pixels, kind, exif)
        path = tmp_path / "photo"
        path.write_bytes(data)
        opened = open_picture(path if as_file else data)
        assert opened.mode == "RGB" and opened.size == expected.shape[1::-1]
        assert np.abs(np.asarray(opened).astype(int) - expected).max() < 12
        assert np.array_equal(np.asarray(read_picture(path).image), np.asarray(opened))


def phone_picture(pixels: np.ndarray, kind: str, exif: Image.Exif | None = None) -> bytes:
    options: dict[str, Any] = {} if exif is None else {"exif": exif.tobytes()}
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif")
        buffer = io.BytesIO()
        made = heif.from_pillow(Image.fromarray(pixels))
        made.info.update(options)
        made.save(buffer, quality=95, **options)
        return buffer.getvalue()
    return encoded(Image.fromarray(pixels), kind, quality=95, **options)


def test_a_heic_picture_without_pillow_heif_names_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(phone_picture(np.zeros((64, 64, 3), np.uint8), "HEIF"))
    done = program_with("sys.modules['pillow_heif'] = None", path)
    assert (
        done
        == f"{path} is a HEIC or HEIF picture, which pillow-heif reads; run: pip install 'safecode-trt[heif]'"
    )


def test_a_pillow_without_avif_is_told(tmp_path: Path) -> None:
    path = tmp_path / "photo.avif"
    path.write_bytes(phone_picture(np.zeros((64, 64, 3), np.uint8), "AVIF"))
    # Pillow's plug-in sees that the compiled half of it is not there, as in a build without libavif.
    done = program_with("sys.modules['PIL._avif'] = None", path)
    assert (
        f"{path} is an AVIF picture, and this Pillow" in done
        and "was built without AVIF; run: pip install" in done
    )


def program_with(change: str, path: Path) -> str:
    """What is said of a picture by a program of its own, in which a package is not there."""
    program = (
        f"import sys; {change}\n"
        "from safecode_trt.errors import PictureError\n"
        "from safecode_trt.runtime.image import open_picture\n"
        "try: print(open_picture(sys.argv[1]))\n"
        "except PictureError as error: print(error)"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_broken_picture_of_a_phone_is_an_error(kind: str) -> None:
    data = phone_picture(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8), kind)
    assert open_picture(data).size == (128, 96)
    for end in (*range(8, 600, 37), len(data) // 2, len(data) - 5):
        with pytest.raises(PictureError):
            open_picture(data[:end])


def test_a_heic_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = phone_picture(np.zeros((96, 128, 3), np.uint8), "HEIF")
    monkeypatch.setattr("safecode_trt.runtime.image.MAX_PIXELS", 96 * 128 - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(PictureError, match="too large"):
        open_picture(data)


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(data).getpixel((0, 0)) == (254, 0, 0) or open_picture(data).getpixel((0, 0)) == (
        255,
        0,
        0,
    )


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (30, 200), (200, 30), (1, 500), (1000, 3)])
def test_any_shape_fits_the_encoder(size: tuple[int, int]) -> None:
    (view,) = picture_views(drawn(*size), SPEC.layout(*size), SPEC.resample)
    assert view.shape == (96, 96, 3)
    assert normalise([view], SPEC)[0].shape == (3, 96, 96)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(PictureError, match="too large"):
        open_picture(path)


def test_what_is_no_picture_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(encoded(drawn(64, 64), "PNG")[:500])
    with pytest.raises(PictureError, match="does not exist"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(PictureError, match="not a picture"):
        open_picture(tmp_path / "text.png")
    with pytest.raises(PictureError, match="not a picture"):
        open_picture(tmp_path / "empty.png")
    with pytest.raises(PictureError, match="cannot be decoded"):
        open_picture(tmp_path / "cut.png")
    with pytest.raises(PictureError):
        open_picture(tmp_path)


def test_noise_is_seeded_clamped_and_absent_at_sigma_zero() -> None:
    view = np.full((32, 32, 3), 0.5, np.float32)

    def noised(sigma: float, seed: int) -> list[np.ndarray]:
        return add_noise([[view, view], [view]], sigma, seed)[0]

    first, again, other = noised(0.1, 1), noised(0.1, 1), noised(0.1, 2)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert abs(float((first[0] - view).std()) - 0.1) < 0.01
    (loud,) = noise_views(Layout(views=(View(resizes=((20, 30),)),), tokens=1), 5.0, 0)
    assert loud.shape == (30, 20, 3) and loud.min() == 0 and loud.max() == 1
    assert np.array_equal(noised(0.0, 3)[0], view)


# step, sqrt(abar), sqrt(1 - abar) of arXiv 2311.16922's schedule
SCHEDULE = (
    (0, 1.0000, 0.0047),
    (100, 0.9983, 0.0584),
    (200, 0.9939, 0.1105),
    (300, 0.9810, 0.1941),
    (400, 0.9449, 0.3275),
    (500, 0.8630, 0.5052),
    (600, 0.7342, 0.6789),
    (700, 0.5927, 0.8054),
    (800, 0.4670, 0.8843),
    (900, 0.3649, 0.9311),
    (999, 0.2850, 0.9585),
)


@pytest.mark.parametrize(("step", "signal", "noise"), SCHEDULE)
def test_the_diffusion_schedule(step: int, signal: float, noise: float) -> None:
    """A picture of nothing shows the noise alone, and one of ones what is left of the signal beside it."""
    nothing, ones = np.zeros((3, 8, 9), np.float32), np.ones((3, 8, 9), np.float32)
    ((drawn,),), ((seen,),) = diffuse([[nothing]], step, 4), diffuse([[ones]], step, 4)
    np.testing.assert_allclose(seen - drawn, signal, atol=6e-5)
    expected = np.random.Generator(np.random.PCG64(4)).standard_normal((3, 8, 9), dtype=np.float32)
    np.testing.assert_allclose(drawn, noise * expected, atol=6e-5 * np.abs(expected).max())
