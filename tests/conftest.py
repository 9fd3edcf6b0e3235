"""Fixtures that several test files share: checkpoints, bundles, a picture, the kernels, a GPU and its packages."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from PIL import Image

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError
from safecode_trt.ops import cuda as device_step
from safecode_trt.runtime.backends import cuda_stream
from tests import kernel_emulation
from tests.engine_bundle import VERSIONS, EngineBundles, ask, opened, policies
from tests.fake_cudart import FakeCuda
from tests.fake_gpu import FakeOrt
from tests.fake_tensorrt import FakeTensorRT
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import DEMO, write_null_bundle

# A busy machine is no reason to fail.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Idefics3 checkpoint of a few ten thousand weights."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_checkpoint(folder, seed=5)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Iterator[Bundle]:
    """Its bundle in fp32, compared with transformers while it was made."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx_ir")
    from safecode_trt.export import ExportConfig, export_bundle

    yield export_bundle(
        tiny_checkpoint, tiny_checkpoint.with_name("bundle"), config=ExportConfig(precision="fp32")
    )


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in int4, as `make demo` exports it but for the comparison with transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx_ir")
    from safecode_trt.export import ExportConfig, export_bundle

    folder = tmp_path_factory.mktemp("demo") / "int4"
    return export_bundle(DEMO, folder, config=ExportConfig(precision="int4", verify=False)).path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> FamilyCheckpoints:
    """Checkpoints and bundles of the families."""
    return FamilyCheckpoints(tmp_path_factory)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels, compiled for the CPU."""
    return kernel_emulation.build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the null backend with room for the rubrics; files that need another one have their own."""
    return write_null_bundle(tmp_path_factory.mktemp("null") / "bundle", capacity=1024)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red picture's file."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A GPU that is not one, without kernels of ours; everything must come back to it."""

    def no_driver() -> None:
        raise BackendError("there are no kernels")

    cuda = FakeCuda()
    monkeypatch.setattr(cuda_stream, "load_cuda", lambda: cuda)
    monkeypatch.setattr(device_step, "load_driver", no_driver)
    yield cuda
    assert cuda.held() == []


@pytest.fixture
def packages(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> dict[Flavour, FakeTensorRT]:
    """TensorRT and TensorRT-RTX for it, to be imported by their names."""
    found: dict[Flavour, FakeTensorRT] = {}
    for flavour, version in VERSIONS.items():
        found[flavour] = FakeTensorRT(cuda, version, rtx=flavour == "tensorrt-rtx")
        monkeypatch.setitem(sys.modules, flavour.replace("-", "_"), found[flavour])
    return found


@pytest.fixture(scope="session")
def engine_bundles(
    tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundles:
    """Bundles with engines for those packages."""
    return EngineBundles(tiny_bundle, tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def ort_tokens(tiny_bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """The replies of ONNX Runtime to what the tests ask, by mode."""
    with opened(tiny_bundle) as engine:
        return {mode: ask(engine, mode).token_ids for mode in policies(tiny_bundle)}


@pytest.fixture
def gpu(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCuda]:
    """Puts an ONNX Runtime that uses the GPU into the machine."""

    def make(*, room: int = 1 << 40, **settings: Any) -> FakeCuda:
        cuda.room = room
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt(cuda, **settings))
        return cuda

    return make
