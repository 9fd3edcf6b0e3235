"""max_tiles: a setting of the export that every later layout of the bundle keeps to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import ConfigError
from safecode_trt.manifest import BUNDLE_JSON
from safecode_trt.models import ModelSpec, load_spec
from safecode_trt.models.idefics3 import Idefics3Spec
from tests.cli_runner import call, fails
from tests.null_bundle import DEMO, write_null_bundle

SIZES = [(96, 96), (640, 480), (480, 641), (1000, 50), (8, 9), (1, 1)]


@pytest.fixture(scope="module")
def spec() -> Idefics3Spec:
    found = load_spec(DEMO)
    assert isinstance(found, Idefics3Spec)
    return replace(found, do_image_splitting=True, longest_edge=4 * found.image_size + 40)


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_grid_that_is_allowed(spec: Idefics3Spec, size: tuple[int, int]) -> None:
    every = {
        layout.rows * layout.columns: layout
        for edge in (96, 192, 288, 384, spec.longest_edge)
        for layout in [replace(spec, longest_edge=edge).layout(*size)]
    }
    for most in range(1, 27):
        found = spec.with_max_tiles(most).layout(*size)
        assert found == every[max(tiles for tiles in every if tiles <= most)]
    assert spec.with_max_tiles(25).layout(*size) == spec.layout(*size)


@pytest.mark.parametrize("size", SIZES)
def test_no_tiles_leave_the_whole_picture(spec: Idefics3Spec, size: tuple[int, int]) -> None:
    layout = spec.with_max_tiles(0).layout(*size)
    assert layout == replace(spec, do_image_splitting=False).layout(*size)
    assert layout.tokens == spec.image_seq_len


def test_a_bundle_keeps_to_it(tmp_path: Path) -> None:
    folder = write_null_bundle(tmp_path / "bundle")
    assert "tiles" not in call("inspect", folder).stdout
    manifest = json.loads((folder / BUNDLE_JSON).read_text())
    (folder / BUNDLE_JSON).write_text(json.dumps(manifest | {"max_tiles": 3}))
    with Engine.open(folder, config=RuntimeConfig(backend="null")) as engine:
        assert engine.model.spec.max_tiles == 3
    assert "at most 3 tiles" in call("inspect", folder).stdout


def test_families_without_tiles_refuse_it(spec: Idefics3Spec) -> None:
    with pytest.raises(ConfigError, match="idefics3 does not cut pictures into tiles"):
        ModelSpec.with_max_tiles(spec, 3)  # what a family inherits


def test_it_cannot_be_negative(tmp_path: Path) -> None:
    result = call("export", "--model", DEMO, "--output", tmp_path / "out", "--max-tiles", "-1")
    fails(result, 2, "--max-tiles must be at least 0, got -1")


@pytest.mark.slow
def test_an_export_with_it(tmp_path: Path) -> None:
    """From the command line to the prompt of an opened bundle."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx_ir")
    model, target = tmp_path / "checkpoint", tmp_path / "bundle"
    write_checkpoint(model, "smolvlm", dtype="F32", changes={"text_config.max_position_embeddings": 512})
    options = ("--precision", "fp32", "--max-tiles", "4")
    result = call("export", "--model", model, "--output", target, *options)
    assert result.exit_code == 0, result.stderr
    with Engine.open(target) as engine:
        picture = Image.new("RGB", (90, 50), (200, 80, 10))
        layout = engine.model.spec.layout(*picture.size)
        assert (layout.rows, layout.columns) == (2, 2)
        reply = engine.generate(
            "what is it?", image=picture, sampling=SamplingParams(max_new_tokens=2), mode="plain"
        )
        assert reply.token_ids
    assert len(load_spec(target).layout(*picture.size).views) > 5
    assert call("verify", target, "--against", model).exit_code == 0
