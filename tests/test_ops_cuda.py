"""What launches the kernels: on a driver of our own that runs them on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from safecode_trt.config import SamplingParams
from safecode_trt.errors import BackendError, ConfigError, SteeringError
from safecode_trt.ops import bindings, cuda
from safecode_trt.ops.cuda import DeviceStep
from safecode_trt.ops.fused import MAX_VOCABULARY, FusedSettings
from tests.fake_cuda import FakeDriver, Status, functions
from tests.kernel_cases import KINDS, check_greedy, make_refusal, make_rows, on_host, tokens_near
from tests.kernel_emulation import NO_IDS, EmulatedStep

STEP = FusedSettings(form="difference", alpha=0.3, beta=0.1, shift_top_k=20, amount=1.5)


@pytest.fixture
def driver(kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(kernels)
    monkeypatch.setattr(cuda, "load_driver", lambda: fake)
    monkeypatch.setattr(cuda, "load_cubin", lambda name, cache: f"machine code of {name}".encode())
    return fake


def device_rows(driver: FakeDriver, logits: NDArray[Any]) -> int:
    """The address of logits that stay alive as long as the driver."""
    kept = np.ascontiguousarray(logits)
    driver.logits.append(kept)
    return kept.ctypes.data


@pytest.mark.parametrize("kind", ["spread", "half"])
def test_a_step_goes_through_the_driver(driver: FakeDriver, kernels: ctypes.CDLL, kind: str) -> None:
    size = 2500
    refusal_ids = make_refusal(size, 1)
    step = DeviceStep(vocabulary=size, refusal_ids=refusal_ids)
    for seed in range(3):  # the same scratch memory again and again
        logits = make_rows(kind, size, seed)
        address = device_rows(driver, logits)
        run = partial(step.run, address, rows=2, half=kind == "half", settings=STEP, stream=5)
        check_greedy(run, logits, STEP, refusal_ids)
    assert driver.launches[:2] == [
        (b"measure_rows", (3, 2, 1, 256, 1, 1), 5),
        (b"choose_token", (3, 1, 1, 256, 1, 1), 5),
    ]
    step.close()
    step.close()
    assert not driver.held


def test_a_draw_goes_through_the_driver(driver: FakeDriver, kernels: ctypes.CDLL) -> None:
    settings = FusedSettings(sampling=SamplingParams(temperature=0.9, top_k=30))
    logits = make_rows("spread", 600, 1, rows=1)
    step = DeviceStep(vocabulary=600, refusal_ids=NO_IDS)
    for uniform in (0.1, 0.5, 0.99):
        choice = step.run(device_rows(driver, logits), rows=1, half=False, settings=settings, uniform=uniform)
        assert choice == EmulatedStep(kernels, 600).run(logits, settings, uniform=uniform)


def test_broken_logits_leave_the_device_as_an_error(driver: FakeDriver) -> None:
    step = DeviceStep(vocabulary=10, refusal_ids=NO_IDS)
    broken = device_rows(driver, np.full((1, 10), np.nan, np.float32))
    with pytest.raises(SteeringError):
        step.run(broken, rows=1, half=False, settings=FusedSettings())


ALLOCATING = ["cuCtxSetCurrent", "cuModuleLoadData", "cuMemAlloc", "cuMemcpyHtoD", "cuMemHostAlloc"]


@pytest.mark.parametrize("name", ALLOCATING)
def test_a_failed_start_holds_nothing(driver: FakeDriver, name: str) -> None:
    driver.fails = name
    with pytest.raises(BackendError, match=f"{name} failed with CUDA_ERROR_LAUNCH_FAILED"):
        DeviceStep(vocabulary=10, refusal_ids=NO_IDS)
    assert not driver.held


def test_a_failed_launch_is_said(driver: FakeDriver) -> None:
    step = DeviceStep(vocabulary=10, refusal_ids=NO_IDS)
    driver.fails = "cuLaunchKernel"
    with pytest.raises(BackendError, match="cuLaunchKernel"):
        step.run(0, rows=1, half=False, settings=FusedSettings())


def test_a_vocabulary_that_is_too_large_is_refused(driver: FakeDriver) -> None:
    for size in (0, MAX_VOCABULARY + 1):
        with pytest.raises(ConfigError):
            DeviceStep(vocabulary=size, refusal_ids=NO_IDS)
    assert not driver.held


def test_cuda_python_has_what_is_called() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    assert not [name for name in ("cuInit", *functions()) if not hasattr(real, name)]


@pytest.fixture
def bindings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def put(module: Any) -> None:
        monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=None))
        monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace())
        for name in ("driver", "nvrtc"):
            monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", module)

    return put


def test_without_cuda_python_the_command_is_named(bindings_of: Callable[[Any], None]) -> None:
    bindings_of(None)
    for load in (bindings.load_driver, bindings.load_nvrtc):
        with pytest.raises(BackendError, match=r"pip install 'safecode-trt\[cuda\]'"):
            load()


def test_without_a_driver_or_a_gpu_the_command_is_named(bindings_of: Callable[[Any], None]) -> None:
    def missing(*arguments: int) -> None:
        raise RuntimeError("libcuda.so.1 was not found\nin these folders")

    bindings_of(SimpleNamespace(cuInit=missing, nvrtcVersion=missing))
    with pytest.raises(BackendError, match=r"no NVIDIA driver .*libcuda\.so\.1 was not found.*nvidia-smi"):
        bindings.load_driver()
    with pytest.raises(BackendError, match=r"NVRTC was not found .*'cuda-python\[all\]'"):
        bindings.load_nvrtc()
    bindings_of(SimpleNamespace(cuInit=lambda flags: (Status.CUDA_ERROR_NO_DEVICE,)))
    with pytest.raises(BackendError, match=r"CUDA_ERROR_NO_DEVICE.*nvidia-smi"):
        bindings.load_driver()


def test_importing_needs_no_cuda_python() -> None:
    code = "import sys, safecode_trt.ops.cuda; assert 'cuda' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.fixture
def gpu() -> Any:
    try:
        return bindings.load_driver()
    except BackendError as error:
        pytest.skip(str(error))


@contextmanager
def on_gpu(gpu: Any, logits: NDArray[Any]) -> Iterator[int]:
    """The address of a copy of the logits in the memory of the GPU."""
    memory = bindings.checked(gpu.cuMemAlloc(logits.nbytes), "cuMemAlloc")
    try:
        bindings.checked(gpu.cuMemcpyHtoD(memory, logits.ctypes.data, logits.nbytes), "cuMemcpyHtoD")
        yield int(memory)
    finally:
        gpu.cuMemFree(memory)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 65, 1025, 151_936, MAX_VOCABULARY])
def test_the_gpu_equals_the_policy(gpu: Any, size: int, kind: str) -> None:
    refusal_ids, logits = make_refusal(size, 3), make_rows(kind, size, 3)
    settings = (STEP, FusedSettings(), FusedSettings(form="vcd", alpha=1.0, shift_top_k=56, amount=-9.0))
    with (
        closing(DeviceStep(vocabulary=size, refusal_ids=refusal_ids)) as step,
        on_gpu(gpu, logits) as address,
    ):
        for one in settings * 10:
            run = partial(step.run, address, rows=2, half=kind == "half", settings=one)
            check_greedy(run, logits, one, refusal_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("filters", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}])
@pytest.mark.parametrize("size", [65, 151_936])
def test_the_gpu_draws_as_the_sampler(gpu: Any, size: int, filters: dict[str, Any]) -> None:
    refusal_ids, logits = make_refusal(size, 3), make_rows("spread", size, 3)
    sampling = SamplingParams(temperature=0.6, **filters)
    settings = replace(STEP, sampling=sampling)
    row = on_host(logits, settings, refusal_ids).logits
    with (
        closing(DeviceStep(vocabulary=size, refusal_ids=refusal_ids)) as step,
        on_gpu(gpu, logits) as address,
    ):
        for uniform in np.random.default_rng(0).random(50).tolist():
            choice = step.run(address, rows=2, half=False, settings=settings, uniform=uniform)
            assert choice.token_id in tokens_near(row, sampling, uniform)
