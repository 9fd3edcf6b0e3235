"""Large bundles: a decoder that ONNX Runtime has optimised is kept, pictures' weights stay where they are on disk."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime import Engine
from safecode_trt.runtime.backends import kept_graphs
from safecode_trt.runtime.backends.kept_graphs import GRAPH, vision_entries
from safecode_trt.runtime.backends.ort import OrtSession

pytest.importorskip("onnx_ir")
ONE = RuntimeConfig(threads=1)
SHORT = SamplingParams(max_new_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path) -> Bundle:
    pytest.importorskip("torch")
    from safecode_trt.export import ExportConfig, export_bundle

    config = ExportConfig(precision="int4", verify=False)
    return export_bundle(tiny_checkpoint, tiny_checkpoint.with_name("kept-int4"), config=config)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of kept graphs, with every decoder being a large one."""
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_graphs, "LARGE", 1)
    yield tmp_path / "safecode-trt" / "graphs"


def answer(bundle: Bundle, config: RuntimeConfig = ONE) -> tuple[int, ...]:
    with Engine.open(bundle.path, config=config) as engine:
        return tuple(engine.generate("can i touch it?", sampling=SHORT).token_ids)


def test_the_second_opening_takes_what_the_first_has_kept(bundle: Bundle, cache: Path) -> None:
    first = answer(bundle)
    (kept,) = cache.iterdir()
    made = (kept / GRAPH).stat().st_mtime_ns
    assert {path.name for path in kept.iterdir()} == {GRAPH, f"{GRAPH}.data"}
    assert b"MatMulNBits" in (kept / GRAPH).read_bytes()
    assert b"MatMulNBits" not in bundle.file(DECODER).read_bytes()
    assert answer(bundle) == first
    assert [path.name for path in cache.iterdir()] == [kept.name]
    assert (kept / GRAPH).stat().st_mtime_ns == made


def test_what_is_broken_is_made_again(bundle: Bundle, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = answer(bundle)
    (kept,) = cache.iterdir()
    (kept / f"{GRAPH}.data").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert answer(bundle) == first
    assert "made again" in caplog.text
    assert (kept / f"{GRAPH}.data").stat().st_size > 0


@pytest.mark.parametrize("obstacle", ["no room", "a file in its place", "not wanted", "small", "fp32"])
def test_it_is_done_without(
    obstacle: str, bundle: Bundle, tiny_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, opened = ONE, bundle
    if obstacle == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    elif obstacle == "a file in its place":
        cache.parent.mkdir()
        cache.write_text("")
    elif obstacle == "not wanted":
        config = RuntimeConfig(threads=1, keep_graphs=False)
    elif obstacle == "small":
        monkeypatch.setattr(kept_graphs, "LARGE", 1 << 30)
    else:
        opened = tiny_bundle
    assert len(answer(opened, config)) == 8
    assert not cache.is_dir() or not list(cache.iterdir())


def test_features_are_the_same_without_repacking(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not vision_entries(tiny_bundle)
    (spec,) = tiny_bundle.manifest.graphs[VISION_ENCODER].inputs
    shape = [size if isinstance(size, int) else 2 for size in spec.shape]
    pixels = np.random.Generator(np.random.PCG64(0)).standard_normal(shape, dtype=np.float32)
    found = []
    for large in (1 << 30, 1):
        monkeypatch.setattr(kept_graphs, "LARGE", large)
        with closing(OrtSession(tiny_bundle, threads=1, decoder=False)) as session:
            found.append(session.encode({spec.name: pixels})["image_features"])
    assert vision_entries(tiny_bundle)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
