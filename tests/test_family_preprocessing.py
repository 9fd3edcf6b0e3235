"""Every family's pictures and prompts as numpy makes them, against transformers' processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safecode_trt.models import load_spec
from safecode_trt.runtime.image import normalise, open_picture, picture_views
from safecode_trt.runtime.prompt import Message, PromptBuilder
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints

pytest.importorskip("transformers")

QUESTION = "what should i do with it?"
SIZES = {
    "portrait": (60, 100),
    "landscape": (120, 70),
    "tiny": (8, 8),
    "huge": (6000, 4000),
    "long": (400, 30),
}
MODES = ("L", "RGBA", "P", "CMYK", "LA")
every_family = pytest.mark.parametrize("case", cases(), ids=lambda case: case.model_type)


def drawn(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x * 2 + y), np.cos(y * 3 - x), np.sin(x * y / 3)], -1)
    return Image.fromarray((waves * 127 + 128).astype(np.uint8))


def same_as_theirs(case: FamilyCase, folder: Path, ours: Image.Image, theirs: Image.Image) -> None:
    """Our inputs of the vision graph against transformers'."""
    spec = load_spec(folder)
    layout = spec.layout(ours.width, ours.height)
    views = normalise(picture_views(ours, layout, spec.resample), spec)
    words = np.arange(1, 5) if spec.words_tokenizer else None
    found = spec.vision_inputs(views, layout, words)
    expected = case.processed(folder, theirs, spec)
    assert set(expected) <= set(found)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@every_family
@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_every_size(case: FamilyCase, size: str, made: FamilyCheckpoints) -> None:
    picture = drawn(*SIZES[size])
    same_as_theirs(case, made.checkpoint(case), picture, picture)


@every_family
@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode(case: FamilyCase, mode: str, made: FamilyCheckpoints) -> None:
    picture = drawn(70, 50).convert(mode)
    if "A" in mode:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    upright = open_picture(picture)
    assert upright.mode == "RGB"
    same_as_theirs(case, made.checkpoint(case), upright, upright)


@every_family
def test_a_rotated_photo_is_turned_upright(case: FamilyCase, made: FamilyCheckpoints, tmp_path: Path) -> None:
    picture, exif = drawn(70, 50), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "photo.png", exif=exif)
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    same_as_theirs(case, made.checkpoint(case), open_picture(tmp_path / "photo.png"), turned)


@every_family
@pytest.mark.parametrize("size", ["portrait", "landscape", "tiny"])
def test_prompts_are_those_of_transformers(case: FamilyCase, size: str, made: FamilyCheckpoints) -> None:
    folder = made.checkpoint(case)
    spec, picture = load_spec(folder), drawn(*SIZES[size])
    layout = spec.layout(*picture.size)
    message = Message(role="user", text=QUESTION, images=1)
    found = PromptBuilder(folder, spec).encode([message], [layout])
    assert found.tolist() == case.token_ids(folder, QUESTION, picture, spec)
    assert (found == spec.image_token_id).sum() == layout.tokens
    positions = spec.positions(found, [layout])
    if case.rotary is None:
        assert np.array_equal(positions, np.arange(len(found) + 1)[None])
    else:
        expected = case.rotary(folder, found, layout)
        assert np.array_equal(positions[:, :-1], expected) and (positions[:, -1] == expected.max() + 1).all()
