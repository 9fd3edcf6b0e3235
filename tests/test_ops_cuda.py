"""What compiles, keeps and launches the kernels: with nvcc and NVRTC where they are, on a driver of our own, on a GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from safecode_trt.config import SamplingParams
from safecode_trt.errors import BackendError, ConfigError, SteeringError
from safecode_trt.ops import bindings, cubin, cuda
from safecode_trt.ops.cubin import SOURCES, compile_kernels, load_cubin
from safecode_trt.ops.cuda import DeviceStep
from safecode_trt.ops.fused import MAX_VOCABULARY, FusedSettings
from tests.fake_cuda import FakeDriver, Status, functions
from tests.kernel_emulation import NO_IDS, EmulatedStep, build
from tests.test_ops_kernels import make_refusal, make_rows, on_host, traced

OPS = Path(cubin.__file__).parent
ARCHITECTURES = (75, 80, 87, 90, 110, 120)
STEP = FusedSettings(form="difference", alpha=0.3, beta=0.1, shift_top_k=20, amount=1.5)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def driver(kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(kernels)
    monkeypatch.setattr(cuda, "load_driver", lambda: fake)
    monkeypatch.setattr(cuda, "load_cubin", lambda name, cache: f"machine code of {name}".encode())
    return fake


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for NVRTC, and lists what it was asked for."""
    asked: list[str] = []

    def compile_kernels(architecture: str) -> bytes:
        asked.append(architecture)
        return f"machine code of {architecture}".encode()

    monkeypatch.setattr(cubin, "compile_kernels", compile_kernels)
    return asked


def test_nvcc_compiles_without_warning_or_spill(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    flags = ["-std=c++17", "-fatbin", "-Werror", "all-warnings", "-Xptxas", "-v", *targets]
    done = subprocess.run(
        [nvcc, *flags, str(OPS / "kernels.cu"), "-o", str(tmp_path / "kernels.fatbin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert "warning" not in report
    for kernel in ("choose_token", "measure_rows"):
        pattern = rf"{kernel}\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        pattern += r".*Used (\d+) registers.* (\d+) bytes smem"
        found = re.findall(pattern, report)
        assert len(found) == len(ARCHITECTURES)
        for architecture, (frame, stores, loads, registers, shared) in zip(ARCHITECTURES, found, strict=True):
            print(f"sm_{architecture} {kernel}: {registers} registers, {shared} bytes of shared memory")
            assert (int(frame), int(stores), int(loads)) == (0, 0, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_without_a_gpu(architecture: int, tmp_path: Path) -> None:
    try:
        bindings.load_nvrtc()
    except BackendError as error:
        pytest.skip(str(error))
    made = load_cubin(f"sm_{architecture}", tmp_path)
    assert made.startswith(b"\x7fELF") and b"choose_token" in made and b"measure_rows" in made
    assert load_cubin(f"sm_{architecture}", tmp_path) == made


def test_nvrtc_says_what_it_does_not_take() -> None:
    try:
        bindings.load_nvrtc()
    except BackendError as error:
        pytest.skip(str(error))
    with pytest.raises(BackendError, match="for sm_1: .*may be older than the GPU"):
        compile_kernels("sm_1")


def test_the_cache_keeps_one_file_for_each_architecture(tmp_path: Path, compiler: list[str]) -> None:
    for _ in range(2):
        assert load_cubin("sm_87", tmp_path) == b"machine code of sm_87"
        assert load_cubin("sm_90", tmp_path) == b"machine code of sm_90"
    assert compiler == ["sm_87", "sm_90"]
    assert len(list(tmp_path.iterdir())) == 2 == len(list(tmp_path.glob("*.cubin")))


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 60], ids=["empty", "cut", "other"])
def test_a_damaged_file_is_made_again(tmp_path: Path, compiler: list[str], damage: bytes) -> None:
    load_cubin("sm_87", tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert load_cubin("sm_87", tmp_path) == b"machine code of sm_87"
    assert load_cubin("sm_87", tmp_path) == b"machine code of sm_87"
    assert len(compiler) == 2


def test_other_sources_and_options_are_other_files(
    tmp_path: Path, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_cubin("sm_87", tmp_path / "cache")
    for name in SOURCES:
        shutil.copy(OPS / name, tmp_path / name)
    monkeypatch.setattr(cubin, "_FOLDER", tmp_path)
    load_cubin("sm_87", tmp_path / "cache")
    assert len(compiler) == 1
    (tmp_path / SOURCES[-1]).write_text("// other\n")
    load_cubin("sm_87", tmp_path / "cache")
    monkeypatch.setattr(cubin, "OPTIONS", ("--std=c++20",))
    load_cubin("sm_87", tmp_path / "cache")
    assert len(compiler) == 3


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, compiler: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert load_cubin("sm_87", in_the_way) == b"machine code of sm_87"
    assert "not kept" in caplog.text


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cubin.os, "replace", full)
    load_cubin("sm_87", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_sources_are_all_of_them() -> None:
    assert {path.name for path in OPS.glob("*.cu*") if path.suffix != ".pyc"} - {"cubin.py", "cuda.py"} == set(SOURCES)


def device_rows(driver: FakeDriver, logits: NDArray[Any]) -> int:
    """The address of logits that stay alive as long as the driver."""
    kept = np.ascontiguousarray(logits)
    driver.library.kept = kept
    return kept.ctypes.data


@pytest.mark.parametrize("kind", ["spread", "half"])
def test_a_step_goes_through_the_driver(driver: FakeDriver, kernels: ctypes.CDLL, kind: str) -> None:
    size = 2500
    refusal_ids = make_refusal(size, 1)
    step = DeviceStep(vocabulary=size, refusal_ids=refusal_ids)
    for seed in range(3):  # the same scratch memory again and again
        logits = make_rows(kind, size, seed)
        address = device_rows(driver, logits)
        choice = step.run(address, rows=2, half=kind == "half", settings=STEP, stream=5)
        assert choice == EmulatedStep(kernels, size, refusal_ids).run(logits, STEP)
        assert [asdict(token) for token in choice.candidates] == traced(on_host(logits, STEP, refusal_ids))
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
        choice = step.run(
            device_rows(driver, logits), rows=1, half=False, settings=settings, uniform=uniform
        )
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
    with pytest.raises(BackendError, match="no NVIDIA driver .*libcuda.so.1 was not found.*nvidia-smi"):
        bindings.load_driver()
    with pytest.raises(BackendError, match=r"NVRTC was not found .*'cuda-python\[all\]'"):
        bindings.load_nvrtc()
    bindings_of(SimpleNamespace(cuInit=lambda flags: (Status.CUDA_ERROR_NO_DEVICE,)))
    with pytest.raises(BackendError, match="CUDA_ERROR_NO_DEVICE.*nvidia-smi"):
        bindings.load_driver()


def test_importing_needs_no_cuda_python() -> None:
    code = "import sys, safecode_trt.ops.cuda; assert 'cuda' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.fixture
def gpu() -> Iterator[Any]:
    try:
        yield bindings.load_driver()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["spread", "ties", "masked", "half", "flat", "falling", "rising"])
@pytest.mark.parametrize("size", [1, 65, 1025, 151_936, MAX_VOCABULARY])
def test_the_gpu_equals_the_policy(gpu: Any, size: int, kind: str) -> None:
    refusal_ids = make_refusal(size, 3)
    step = DeviceStep(vocabulary=size, refusal_ids=refusal_ids)
    logits = make_rows(kind, size, 3)
    memory = bindings.checked(gpu.cuMemAlloc(logits.nbytes), "cuMemAlloc")
    try:
        bindings.checked(gpu.cuMemcpyHtoD(memory, logits.ctypes.data, logits.nbytes), "cuMemcpyHtoD")
        for settings in (STEP, FusedSettings(), FusedSettings(form="vcd", alpha=1.0, shift_top_k=56, amount=-9.0)):
            combined = on_host(logits, settings, refusal_ids)
            for _ in range(20):
                choice = step.run(int(memory), rows=2, half=kind == "half", settings=settings)
                assert choice.token_id == int(combined.logits.argmax())
                assert [asdict(token) for token in choice.candidates] == traced(combined)
    finally:
        gpu.cuMemFree(memory)
        step.close()
