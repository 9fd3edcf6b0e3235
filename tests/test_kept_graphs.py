"""Large bundles: a decoder that ONNX Runtime has optimised is kept, pictures' weights stay where they are on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from safecode_trt.bundle import Bundle, file_entry
from safecode_trt.config import RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.runtime.backends import kept_graphs, ort_providers
from safecode_trt.runtime.backends.kept_graphs import GRAPH, RECORD, Open, open_decoder, vision_entries
from safecode_trt.runtime.backends.ort import OrtSession
from safecode_trt.runtime.backends.ort_providers import open_graph
from tests.cli_runner import call

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
        return tuple(engine.generate("can i touch it?", sampling=SHORT, mode="plain").token_ids)


def test_the_second_opening_takes_what_the_first_has_kept(bundle: Bundle, cache: Path) -> None:
    first = answer(bundle)
    (kept,) = cache.iterdir()
    made = (kept / GRAPH).stat().st_mtime_ns
    assert {path.name for path in kept.iterdir()} == {GRAPH, f"{GRAPH}.data", RECORD}
    assert b"MatMulNBits" in (kept / GRAPH).read_bytes()
    assert b"MatMulNBits" not in bundle.file(DECODER).read_bytes()
    assert answer(bundle) == first
    assert [path.name for path in cache.iterdir()] == [kept.name]
    assert (kept / GRAPH).stat().st_mtime_ns == made


def accuracy_levels(graph: Path) -> set[int]:
    """Those that are baked into a graph's multiplications with quantised weights."""
    nodes = onnx.load(graph, load_external_data=False).graph.node
    attributes = [a for node in nodes if node.op_type == "MatMulNBits" for a in node.attribute]
    return {attribute.i for attribute in attributes if attribute.name == "accuracy_level"}


@pytest.mark.parametrize("change", ["accuracy", "optimisation", "onnxruntime", "safecode-trt", "processor"])
def test_a_graph_made_from_something_else_is_made_anew_and_the_old_one_removed(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    answer(bundle)
    (first,) = cache.iterdir()
    assert accuracy_levels(first / GRAPH) == {4}
    with monkeypatch.context() as patch:
        if change == "accuracy":
            levels = {**ort_providers.ENTRIES, "session.qdq_matmulnbits_accuracy_level": "1"}
            patch.setattr(ort_providers, "ENTRIES", levels)
        elif change == "optimisation":
            patch.setattr(ort_providers, "OPTIMIZATION_LEVEL", "ORT_ENABLE_BASIC")
        elif change == "onnxruntime":
            patch.setattr(onnxruntime, "__version__", "1.0.0")
        elif change == "safecode-trt":
            patch.setattr(kept_graphs, "__version__", "0.0.0")
        else:
            patch.setattr(kept_graphs, "vector_extensions", lambda: ("avx512f",))
        answer(bundle)
        (second,) = cache.iterdir()
        if change == "accuracy":
            assert accuracy_levels(second / GRAPH) == {1}
        assert second.name != first.name
    answer(bundle)
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_threads_do_not_change_a_graph(bundle: Bundle, cache: Path) -> None:
    answer(bundle)
    (kept,) = cache.iterdir()
    made = (kept / GRAPH).stat().st_ino
    answer(bundle, RuntimeConfig(threads=2))
    assert list(cache.iterdir()) == [kept] and (kept / GRAPH).stat().st_ino == made


def test_a_copy_shares_the_graph_and_a_new_export_replaces_it(
    bundle: Bundle, tiny_checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    from safecode_trt.export import ExportConfig, WeightConfig, export_bundle

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    answer(bundle)
    (first,) = cache.iterdir()
    answer(Bundle.open(copy))
    assert list(cache.iterdir()) == [first]
    shutil.rmtree(copy)
    answer(export_bundle(tiny_checkpoint, copy, config=ExportConfig(precision="int8", verify=False)))
    assert len(list(cache.iterdir())) == 2, "the first one is another bundle's too"
    again = ExportConfig(precision="int4", weights=WeightConfig(block_size=16), verify=False, overwrite=True)
    answer(export_bundle(tiny_checkpoint, copy, config=again))
    assert len(list(cache.iterdir())) == 2 and first.is_dir()


@pytest.mark.parametrize("damage", ["cut", "half deleted", "no record", "another record", "changed"])
def test_what_is_broken_is_made_again(
    bundle: Bundle, cache: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = answer(bundle)
    (kept,) = cache.iterdir()
    before = {path.name: file_entry(path) for path in kept.iterdir()}
    data = kept / f"{GRAPH}.data"
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "half deleted":
        (kept / GRAPH).unlink()
    elif damage == "no record":
        (kept / RECORD).unlink()
    elif damage == "another record":
        (kept / RECORD).write_text("{}")
    else:
        data.write_bytes(bytes(255 - byte for byte in data.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert answer(bundle, replace(ONE, check_hashes=damage == "changed")) == first
    assert f"made again: {kept} is not as it was written" in caplog.text
    assert {path.name: file_entry(path) for path in kept.iterdir()} == before
    assert list(cache.iterdir()) == [kept]


def failing(at: int, *, before: Callable[[], object] = lambda: None) -> tuple[Open, list[str]]:
    """Opens graphs, but for one of them; with the names of those that it was asked for."""
    asked: list[str] = []

    def opening(path: Path, *, optimized: Path | None = None) -> Any:
        asked.append("written" if optimized else "kept" if path.parent.name != "onnx" else "own")
        if len(asked) == at:
            raise BackendError("no memory")
        before()
        return open_graph(path, threads=1, spin=False, optimized=optimized)

    return opening, asked


def test_a_sound_graph_that_cannot_be_opened_stays(bundle: Bundle, cache: Path) -> None:
    answer(bundle)
    (kept,) = cache.iterdir()
    opening, asked = failing(1)
    assert open_decoder(bundle, opening, keep=True) is not None
    assert asked == ["kept", "own"] and (kept / GRAPH).is_file()


def test_who_was_slower_opens_nothing_twice(
    bundle: Bundle, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening, asked = failing(0, before=lambda: open_decoder(bundle, failing(0)[0], keep=True))
    with caplog.at_level(logging.WARNING):
        assert open_decoder(bundle, opening, keep=True) is not None
    assert asked == ["written"] and caplog.text == ""
    (kept,) = cache.iterdir()
    assert {path.name for path in kept.iterdir()} == {GRAPH, f"{GRAPH}.data", RECORD}


def test_what_cannot_be_published_is_opened_once(
    bundle: Bundle, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    opening, asked = failing(0)
    with caplog.at_level(logging.WARNING):
        assert open_decoder(bundle, opening, keep=True) is not None
    assert asked == ["written"] and "is not kept: [Errno 28] No space left" in caplog.text
    assert list(cache.iterdir()) == []


def test_what_is_used_no_more_is_deleted(bundle: Bundle, cache: Path) -> None:
    answer(bundle)
    (used,) = cache.iterdir()
    day = 24 * 60 * 60
    ages = {"a": 9, "b": 8, "c": 7, "d": 6, ".old": 2, ".young": 0}
    for name, days in ages.items():
        (cache / name).mkdir()
        (cache / name / "file").write_text("")
        os.utime(cache / name, (time.time() - days * day,) * 2)
    os.utime(used, (time.time() - 10 * day,) * 2)
    answer(bundle)  # is used now, and nothing new is written
    assert len(list(cache.iterdir())) == 1 + len(ages)
    assert used.stat().st_mtime > time.time() - day
    (used / RECORD).unlink()
    answer(bundle)
    assert {path.name for path in cache.iterdir()} == {used.name, "b", "c", "d", ".young"}


def test_without_a_home_nothing_is_kept(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert len(answer(bundle)) == 8


def test_verify_measures_the_bundles_own_graph(bundle: Bundle, tiny_checkpoint: Path, cache: Path) -> None:
    answer(bundle)
    (kept,) = cache.iterdir()
    data = kept / f"{GRAPH}.data"
    data.write_bytes(bytes(255 - byte for byte in data.read_bytes()))
    result = call("verify", bundle.path, "--against", tiny_checkpoint, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parity"]["logit_noise"] < 1


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
