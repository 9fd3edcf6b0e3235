"""doctor: what it executes, what it makes of what it finds, and how it says it."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.contract import ATTENTION_FORMS
from safecode_trt.doctor import probe
from safecode_trt.errors import BackendError
from safecode_trt.ops import bindings, cuda
from safecode_trt.runtime import device
from tests import fake_cuda
from tests.cli_runner import call
from tests.fake_cudart import FakeCuda

BACKENDS = [
    "ort-cpu",
    "ort-cuda",
    "ort-tensorrt",
    "ort-trt-rtx",
    "trt (tensorrt)",
    "trt (tensorrt-rtx)",
    "cuda kernels",
]
FIELDS = {
    "backend",
    "state",
    "detail",
    "version",
    "device",
    "compute_capability",
    "executed",
    "largest_difference",
    "fix",
}
GPU = device.CudaDevice(
    name="Fake GPU", compute_capability="87", free_memory=5_000_000_000, total_memory=8_000_000_000
)
MakeGpu = Callable[..., FakeCuda]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cuda_device", lambda: None)


@pytest.fixture
def orin(gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> MakeGpu:
    monkeypatch.setattr(device, "cuda_device", lambda: GPU)
    return gpu


def examined(*arguments: object, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by backend."""
    result = call("doctor", "--json", *arguments)
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    assert document["ready"] is (code == 0)
    findings = document["backends"]
    assert [finding["backend"] for finding in findings][: len(BACKENDS)] == BACKENDS
    assert all(set(finding) == FIELDS for finding in findings)
    return {finding["backend"]: finding for finding in findings}


def test_without_a_gpu_the_cpu_executes_and_the_rest_is_absent(no_gpu: None) -> None:
    found = examined()
    cpu = found.pop("ort-cpu")
    assert (cpu["state"], cpu["device"], cpu["version"]) == ("ok", "CPU", onnxruntime.__version__)
    assert cpu["executed"] == list(ATTENTION_FORMS) and 0 < cpu["largest_difference"] < 1e-5
    assert {finding["state"] for finding in found.values()} == {"absent"}
    assert all(finding["fix"] or "there is no GPU" in finding["detail"] for finding in found.values())


def test_it_fits_a_terminal_of_80_columns(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = call("doctor")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and max(map(len, lines)) <= 80
    assert any(line.startswith("ok      ort-cpu") for line in lines)
    assert lines[3].split(maxsplit=1) == ["gpu", "none found"]


def test_a_bundle_is_asked_for_a_token(no_gpu: None, tiny_bundle: Bundle) -> None:
    found = examined(tiny_bundle.path)["bundle"]
    assert found["state"] == "ok" and "ort-cpu answered one token in" in found["detail"]


def test_a_broken_bundle_is_reported_among_the_rest(no_gpu: None, tmp_path: Path) -> None:
    found = examined(tmp_path, code=1)
    assert found["bundle"]["state"] == "fail" and found["ort-cpu"]["state"] == "ok"
    result = call("doctor", tmp_path)
    assert result.stderr == f"error: {tmp_path} does not run on this machine; the lines above say why\n"


def test_wrong_arithmetic_is_noticed(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = probe.expected
    monkeypatch.setattr(
        probe, "expected", lambda dtype="float32": {name: x + 1 for name, x in right(dtype).items()}
    )
    found = examined(code=1)["ort-cpu"]
    assert found["state"] == "fail" and "computes wrongly" in found["detail"]
    assert call("doctor").stderr == "error: no backend runs on this machine; the lines above say why\n"


def test_without_opset_24_there_is_still_the_decomposed_form(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph_path, broken = probe.graph_path, tmp_path / "broken.onnx"
    broken.write_bytes(b"x")
    monkeypatch.setattr(
        probe, "graph_path", lambda form, dtype: broken if form == "portable" else graph_path(form, dtype)
    )
    found = examined()["ort-cpu"]
    assert found["state"] == "warn" and "--attention decomposed" in found["detail"]


def test_without_onnxruntime_nothing_runs(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = examined(code=1)["ort-cpu"]
    assert (found["state"], found["fix"]) == ("absent", "pip install 'safecode-trt[cpu]'")


# With a GPU ----------------------------------------------------------------------------------------


def test_a_provider_on_the_gpu_runs_in_both_precisions(orin: MakeGpu, tiny_bundle: Bundle) -> None:
    orin()
    found = examined(tiny_bundle.path)
    cuda = found["ort-cuda"]
    assert (cuda["state"], cuda["device"], cuda["compute_capability"]) == ("ok", "Fake GPU", "8.7")
    assert cuda["executed"] == list(ATTENTION_FORMS)
    assert found["ort-cpu"]["largest_difference"] < cuda["largest_difference"] < 2e-2  # float16
    assert found["ort-tensorrt"]["executed"] == ["portable"]
    said = found["bundle"]["detail"]
    assert (
        said.index("ort-cpu answered") < said.index("ort-cuda answered") < said.index("ort-tensorrt answered")
    )


def test_an_attention_that_stays_on_the_cpu_is_named(orin: MakeGpu) -> None:
    orin(on_cpu=["Attention"])
    cuda = examined()["ort-cuda"]
    assert cuda["state"] == "warn" and cuda["executed"] == ["decomposed"]
    assert "to the CPU: Attention /model/layers.0/Attention" in cuda["detail"]


def test_a_listed_provider_that_does_not_load_fails(orin: MakeGpu) -> None:
    orin(broken=["CUDAExecutionProvider"])
    cuda = examined()["ort-cuda"]
    assert cuda["state"] == "fail" and "is installed and does not load" in cuda["detail"]


def test_a_driver_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BackendError("the CUDA driver failed in cuInit with code 803; is the GPU in order?")

    monkeypatch.setattr(device, "cuda_device", broken)
    assert "code 803" in call("doctor").stdout


class FakeTensorRT(ModuleType):
    """The part of TensorRT that the probe uses; an engine is the ONNX model, and executes on the CPU."""

    __version__ = "10.16.1"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)

    def __init__(self, cuda: FakeCuda, *, wrong: float = 0.0) -> None:
        super().__init__("tensorrt")
        self.cuda, self.wrong, self.addresses = cuda, wrong, dict[str, int]()
        self.Logger: Any = type("Logger", (), {"ERROR": 1, "__init__": lambda logger, severity: None})
        self.Builder = self.OnnxParser = self.Runtime = lambda *given: self

    def parse(self, model: bytes) -> bool:
        self.model = model
        return True

    def build_serialized_network(self, network: object, config: object) -> bytes:
        return self.model

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.cuda.put(stream, self._execute)
        return True

    def _execute(self) -> None:
        session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])
        feeds = {name: self._array(name, x) for name, x in probe.feeds("float16").items()}
        names = [output.name for output in session.get_outputs()]
        for name, value in zip(names, session.run(names, feeds), strict=True):
            self._array(name, value)[...] = value + np.float16(self.wrong)

    def _array(self, name: str, like: np.ndarray) -> np.ndarray:
        return self.cuda.memory.view(self.addresses[name], like.nbytes).view(like.dtype).reshape(like.shape)

    def __getattr__(self, name: str) -> Any:
        if name in (
            "create_network",
            "create_builder_config",
            "deserialize_cuda_engine",
            "create_execution_context",
        ):
            return lambda *given: self
        raise AttributeError(name)


@pytest.mark.parametrize(("wrong", "state"), [(0.0, "ok"), (0.1, "fail")])
def test_an_engine_of_the_probe_is_executed(
    orin: MakeGpu, monkeypatch: pytest.MonkeyPatch, wrong: float, state: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(orin(), wrong=wrong))
    found = examined()["trt (tensorrt)"]
    assert (found["state"], found["version"]) == (state, "10.16.1" if state == "ok" else None)


@pytest.mark.parametrize("state", ["ok", "fail"])
def test_a_step_of_the_kernels_is_executed(
    kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    driver = fake_cuda.FakeDriver(kernels)
    monkeypatch.setattr(device, "cuda_device", lambda: GPU)
    for module in (bindings, cuda):
        monkeypatch.setattr(module, "load_driver", lambda: driver)
    monkeypatch.setattr(cuda, "load_cubin", lambda name, cache: f"machine code of {name}".encode())
    if state == "fail":
        monkeypatch.setattr(driver, "cuMemcpyHtoD", lambda *given: fake_cuda.OK)
    found = examined()["cuda kernels"]
    assert found["state"] == state and not driver.held
    assert "the token is numpy's" in found["detail"] or state == "fail"
