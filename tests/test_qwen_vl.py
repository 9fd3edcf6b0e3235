"""What the Qwen-VL families compute in numpy, against transformers' own functions on grids of every shape."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from make_random_checkpoint import write_checkpoint
from safecode_trt.errors import CheckpointError, PictureError
from safecode_trt.models import load_spec
from safecode_trt.models.patches import PatchGrid, multimodal_positions
from safecode_trt.models.qwen2_5_vl import Qwen25VLSpec
from safecode_trt.models.qwen2_vl import Qwen2VLSpec
from safecode_trt.models.qwen3_vl import Qwen3VLSpec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # noqa: E402
from transformers.vision_utils import (  # noqa: E402
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from safecode_trt.export.checkpoint import Checkpoint  # noqa: E402

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
sides = st.integers(1, 11)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in made.items():
        write_checkpoint(folder, family, dtype="F32")
    return made


@pytest.fixture(scope="module")
def specs(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: load_spec(folder) for family, folder in folders.items()}


def patches(rows: int, columns: int) -> Any:
    """transformers' grid of a picture of rows x columns image tokens."""
    return torch.tensor([[1, rows * 2, columns * 2]])


def changed(folder: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a checkpoint's settings with other values; None takes a key away."""
    target.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        written = json.loads((folder / name).read_text())
        if name == file:
            written |= values
        (target / name).write_text(json.dumps({k: v for k, v in written.items() if v is not None}))
    return target


@given(
    width=st.integers(1, 3000), height=st.integers(1, 3000), low=st.integers(4, 60), more=st.integers(0, 200)
)
def test_sizes_are_those_of_the_processor(width: int, height: int, low: int, more: int) -> None:
    grid = PatchGrid(patch_size=14, merge_size=2, temporal_patch_size=2)
    limits = (low * 28**2, (low + more) * 28**2)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(PictureError, match="at most 200 times"):
            grid.fitted(width, height, *limits)
        return
    found = grid.fitted(width, height, *limits)
    assert found.views[0].size[::-1] == smart_resize(height, width, 28, *limits)


@every_family
@settings(max_examples=20)
@given(rows=sides, columns=sides)
def test_rotary_tables(
    specs: dict[str, Any], folders: dict[str, Path], family: str, rows: int, columns: int
) -> None:
    spec: Qwen2VLSpec = specs[family]
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = transformers.AutoConfig.from_pretrained(folders[family]).vision_config
    rotary = getattr(module, f"{name}VisionRotaryEmbedding")(config)
    expected = rotary(torch.zeros(1), get_vision_position_ids(patches(rows, columns), 2))
    tables = spec.grid.rotary(spec.grid.layout(rows, columns), spec.vision_head_dim, spec.vision_rope_theta)
    for found, table in zip((tables["rotary_cos"], tables["rotary_sin"]), expected, strict=True):
        both = np.concatenate([found, found], -1).reshape(table.shape)
        np.testing.assert_allclose(both, table.numpy(), atol=2e-6)


@given(rows=sides, columns=sides, window=st.integers(1, 5))
def test_windows(specs: dict[str, Any], rows: int, columns: int, window: int) -> None:
    spec: Qwen25VLSpec = replace(specs["qwen2_5_vl"], window=window)
    layout = spec.grid.layout(rows, columns)
    pixels = np.zeros((3, layout.views[0].size[1], layout.views[0].size[0]), np.float32)
    found = spec.vision_inputs([pixels], layout, None)
    order, ends = get_vision_window_index(patches(rows, columns), 2, window * spec.grid.token_size, 8)
    taken = found["window_bias"][0] == 0
    assert found["window_index"][0][taken].tolist() == order.tolist()
    assert taken.sum(-1).tolist() == (ends.diff() // 4).tolist()
    places = found["window_index"].reshape(-1)[found["token_index"][0]]
    assert places.tolist() == list(range(layout.tokens))
    assert taken.reshape(-1)[found["token_index"][0]].all()


@given(rows=sides, columns=sides, side=st.integers(1, 12))
def test_corners_of_the_position_table(specs: dict[str, Any], rows: int, columns: int, side: int) -> None:
    spec: Qwen3VLSpec = replace(specs["qwen3_vl"], position_side=side)
    layout = spec.grid.layout(rows, columns)
    pixels = np.zeros((3, layout.views[0].size[1], layout.views[0].size[0]), np.float32)
    found = spec.vision_inputs([pixels], layout, None)
    index, weight = get_vision_interpolation_indices_and_weights(
        patches(rows, columns), num_grid_per_side=side, align_corners=True, spatial_merge_size=2
    )
    assert np.array_equal(found["position_index"].reshape(-1, 4), index.numpy())
    np.testing.assert_allclose(found["position_weight"].reshape(-1, 4), weight.numpy(), atol=1e-6)


@every_family
@settings(max_examples=15)
@given(
    grids=st.lists(st.tuples(sides, sides), max_size=3),
    text=st.lists(st.integers(1, 9), min_size=4, max_size=4),
)
def test_positions_of_several_pictures(
    models: dict[str, Any], family: str, grids: list[tuple[int, int]], text: list[int]
) -> None:
    parts = [[0] * text[0]]
    for (rows, columns), words in zip(grids, text[1:], strict=False):
        parts += [[1] * rows * columns, [0] * words]
    for last in (parts, parts[:-1]):  # the second ends with a picture
        kinds = np.array([kind for part in last for kind in part], np.int64)
        found = multimodal_positions(kinds == 1, grids if kinds.any() else [])
        if not len(kinds):
            continue
        expected, delta = models[family].get_rope_index(
            torch.zeros(1, len(kinds), dtype=torch.long),
            mm_token_type_ids=torch.from_numpy(kinds)[None],
            image_grid_thw=torch.cat([patches(*grid) for grid in grids]) if grids else None,
        )
        assert np.array_equal(found[:, :-1], expected[:, 0].numpy())
        assert (found[:, -1] == int(delta) + len(kinds)).all()


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    """The models without weights."""
    found = {}
    for family, folder in folders.items():
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            found[family] = transformers.AutoModelForImageTextToText.from_config(config).model
    return found


@every_family
def test_names_and_settings_as_transformers_saves_them(
    folders: dict[str, Path], specs: dict[str, Any], family: str, tmp_path: Path
) -> None:
    folder, spec = folders[family], specs[family]
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    assert load_spec(tmp_path) == spec
    saved, made = (Checkpoint(path, spec.renames) for path in (tmp_path, folder))
    assert sorted(saved.names("")) == sorted(made.names("")) == sorted(n for n, _ in model.named_parameters())


@every_family
@settings(max_examples=50)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000), most=st.integers(0, 5))
def test_max_tiles_bounds_the_tokens(
    specs: dict[str, Any], family: str, width: int, height: int, most: int
) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    own = replace(specs[family], min_pixels=4 * 16**2, max_pixels=1000 * 16**2)
    layout, found = own.layout(width, height), own.with_max_tiles(most).layout(width, height)
    assert found.tokens <= (most + 1) * 256
    assert found == layout or layout.tokens > (most + 1) * 256


def test_max_tiles_is_no_less_than_the_checkpoint(specs: dict[str, Any]) -> None:
    spec: Qwen2VLSpec = specs["qwen2_vl"]
    assert spec.with_max_tiles(9).max_pixels == spec.max_pixels


def test_unusable_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, file = folders["qwen2_vl"], "preprocessor_config.json"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"patch_size": 14}, "patch_size is 14, but vision_config has 8"),
        ({"max_pixels": 10}, "min_pixels and max_pixels"),
        ({"min_pixels": None, "size": {"height": 30}}, "shortest_edge and longest_edge"),
    ]
    for number, (values, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            load_spec(changed(folder, tmp_path / str(number), file, **values))


def test_limits_by_either_name(folders: dict[str, Path], tmp_path: Path) -> None:
    file, size = "preprocessor_config.json", {"shortest_edge": 2048, "longest_edge": 4096}
    old = changed(folders["qwen2_vl"], tmp_path / "old", file, size=size)
    new = changed(folders["qwen2_vl"], tmp_path / "new", file, size=size, min_pixels=None, max_pixels=None)
    first, second = load_spec(old), load_spec(new)
    assert isinstance(first, Qwen2VLSpec) and isinstance(second, Qwen2VLSpec)
    assert (first.min_pixels, first.max_pixels) == (1024, 10240)  # min_pixels and max_pixels count first
    assert (second.min_pixels, second.max_pixels) == (2048, 4096)
