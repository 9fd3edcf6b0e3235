"""Fixtures that are dear to make and that several test files share: checkpoints and their bundles, the kernels."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from safecode_trt.runtime import cuda_memory
from tests import kernel_emulation
from tests.fake_gpu import FakeDriver, FakeOrt
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import DEMO

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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeDriver]:
    """Puts a GPU into the machine, and an ONNX Runtime that uses it."""

    def make(*, room: int = 1 << 40, **settings: Any) -> FakeDriver:
        driver = FakeDriver(room)
        monkeypatch.setattr(cuda_memory, "load_driver", lambda: driver)
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt(driver, **settings))
        return driver

    return make
