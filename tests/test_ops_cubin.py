"""What compiles and keeps the kernels: nvcc and NVRTC where they are, and the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from safecode_trt.errors import BackendError
from safecode_trt.ops import bindings, cubin
from safecode_trt.ops.cubin import SOURCES, compile_kernels, load_cubin

OPS = Path(cubin.__file__).parent
ARCHITECTURES = (75, 80, 87, 90, 110, 120)


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
        pattern = (
            rf"{kernel}\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        )
        pattern += r".*Used (\d+) registers.* (\d+) bytes smem"
        found = re.findall(pattern, report)
        assert len(found) == len(ARCHITECTURES)
        for architecture, (frame, stores, loads, registers, shared) in zip(ARCHITECTURES, found, strict=True):
            print(f"sm_{architecture} {kernel}: {registers} registers, {shared} bytes of shared memory")  # noqa: T201
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
    with pytest.raises(BackendError, match=r"for sm_1: .*may be older than the GPU"):
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

    monkeypatch.setattr(os, "replace", full)
    load_cubin("sm_87", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_sources_are_all_of_them() -> None:
    assert {path.name for path in OPS.iterdir() if path.suffix in (".cu", ".cuh")} == set(SOURCES)


def test_without_a_home_the_kernels_are_compiled_anew(
    compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cubin, "cache_folder", lambda part: None)
    assert load_cubin("sm_87") == load_cubin("sm_87") == b"machine code of sm_87"
    assert compiler == ["sm_87", "sm_87"]
