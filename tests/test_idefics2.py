"""Idefics2 alone: places in the table of positions, markers between pictures, quarters, silent files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.errors import CheckpointError
from safecode_trt.models import load_spec
from safecode_trt.models.idefics2 import Idefics2Spec, position_ids
from safecode_trt.runtime.prompt import Message, PromptBuilder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SIZES = [(60, 100), (30, 31), (400, 20), (2, 300), (9, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("idefics2") / "checkpoint"
    write_checkpoint(path, "idefics2", dtype="F32")
    return path


@pytest.fixture(scope="module")
def spec(folder: Path) -> Idefics2Spec:
    found = load_spec(folder)
    assert isinstance(found, Idefics2Spec)
    return found


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("side", [7, 70])
def test_every_patch_has_the_place_that_transformers_looks_up(side: int) -> None:
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

    config = Idefics2VisionConfig(hidden_size=2, image_size=side, patch_size=1, num_attention_heads=1)
    embeddings, seen = Idefics2VisionEmbeddings(config), []
    embeddings.position_embedding.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for rows in range(1, 120):
        columns = 120 - rows
        embeddings(torch.zeros(1, 3, rows, columns), torch.ones(1, rows, columns, dtype=torch.bool))
        assert np.array_equal(position_ids(rows, columns, side).ravel(), seen.pop()[0].numpy())


@pytest.mark.parametrize("splitting", [False, True])
@pytest.mark.parametrize("text", ["what is it?", " a space", "\na line", "<b>", ""])
def test_prompts_with_several_pictures(tmp_path: Path, splitting: bool, text: str) -> None:
    from transformers import AutoProcessor

    write_checkpoint(tmp_path, "idefics2", dtype="F32")
    settings(tmp_path, do_image_splitting=splitting)
    spec, processor = load_spec(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    pictures = [Image.new("RGB", size, (9, 99, 199)) for size in SIZES[:2]]
    turn = {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": text}]}
    shown = processor.apply_chat_template([turn], add_generation_prompt=True)
    expected = processor(text=shown, images=pictures)["input_ids"][0]
    message = Message(role="user", text=text, images=2)
    found = PromptBuilder(tmp_path, spec).encode([message], [spec.layout(*x.size) for x in pictures])
    assert found.tolist() == expected


def test_a_marker_that_the_user_writes_stays_text(folder: Path, spec: Idefics2Spec) -> None:
    marker, layout = "<fake_token_around_image>", spec.layout(50, 50)
    prompts = PromptBuilder(folder, spec)
    control = prompts.tokenizer.token_to_id(marker)

    def markers(text: str) -> int:
        message = Message(role="user", text=text, images=1)
        return int((prompts.encode([message], [layout]) == control).sum())

    assert markers(f"{marker}{marker}hello") == markers("hello") == len(layout.views) + 1


@pytest.mark.parametrize("size", SIZES)
def test_quarters_cover_the_picture_once(spec: Idefics2Spec, size: tuple[int, int]) -> None:
    layout = spec.layout(*size)
    covered = np.zeros(size, int)
    for view in layout.views[:-1]:
        assert view.frame is not None
        left, top, right, bottom = view.frame.box
        covered[left:right, top:bottom] += 1
    assert (covered == 1).all() and layout.views[-1].frame is None
    assert all(spec.shortest_edge <= edge <= spec.longest_edge for view in layout.views for edge in view.size)


@pytest.mark.parametrize("most", [0, 3, 4, 9])
def test_all_quarters_or_none(spec: Idefics2Spec, most: int) -> None:
    layout = spec.with_max_tiles(most).layout(60, 100)
    assert len(layout.views) == (5 if most >= 4 else 1)
    assert layout.views[-1] == spec.layout(60, 100).views[-1]
    assert layout.tokens == len(layout.views) * spec.image_seq_len


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_a_line_of_pixels_is_not_cut(spec: Idefics2Spec, size: tuple[int, int]) -> None:
    assert len(spec.layout(*size).views) == 1


def test_silent_files_mean_what_the_classes_assume(tmp_path: Path) -> None:
    from transformers import Idefics2Config
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics2"}))
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    spec, config, theirs = load_spec(tmp_path), Idefics2Config(), Idefics2ImageProcessorPil()
    assert isinstance(spec, Idefics2Spec)
    assert spec.image_token_id == config.image_token_id
    assert spec.image_seq_len == config.perceiver_config.resampler_n_latents
    assert (spec.patch_size, spec.side) == (config.vision_config.patch_size, 224 // 32)
    assert spec.text.rms_norm_eps == config.text_config.rms_norm_eps
    assert spec.text.max_position_embeddings == config.text_config.max_position_embeddings
    assert spec.text.sliding_window == config.text_config.sliding_window
    assert (spec.image_mean, spec.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert (spec.resample, spec.rescale_factor) == (theirs.resample, theirs.rescale_factor)
    assert (spec.shortest_edge, spec.longest_edge) == (
        theirs.size["shortest_edge"],
        theirs.size["longest_edge"],
    )
    assert spec.do_image_splitting is theirs.do_image_splitting


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 9, "width": 9}, "must have a shortest_edge"),
        ({"shortest_edge": 7, "longest_edge": 56}, "one patch of 8"),
    ],
)
def test_sizes_that_cannot_be_used(tmp_path: Path, size: dict[str, int], message: str) -> None:
    write_checkpoint(tmp_path, "idefics2", dtype="F32")
    settings(tmp_path, size=size)
    with pytest.raises(CheckpointError, match=message):
        load_spec(tmp_path)
