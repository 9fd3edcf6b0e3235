"""tools/gpu_check.py: what fails, hangs, has no GPU or no time is recorded, and the sections measure what they say."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import gpu_check
import gpu_measures
import gpu_sections
from gpu_sections import Task
from safecode_trt.bundle import Bundle
from safecode_trt.runtime import device
from tests.fake_cudart import FakeCuda

ROOT = Path(__file__).parents[1]
GPU = device.CudaDevice(
    name="Fake GPU", compute_capability="90", free_memory=5_000_000_000, total_memory=8_000_000_000
)


def test_the_two_programs_have_the_same_sections() -> None:
    assert list(gpu_check.TITLES) == list(gpu_sections.SECTIONS)
    assert set(gpu_check.LEAST) <= set(gpu_check.TITLES)
    assert gpu_check.NO_GPU == gpu_measures.NO_GPU


def test_without_a_gpu_every_section_says_so(tmp_path: Path) -> None:
    if device.cuda_device() is not None:
        pytest.skip("this machine has a GPU, and the test is about one without")
    program = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--output-dir", str(tmp_path)]
    only = ["--only", "doctor", "bandwidth", "fp16-bundle"]
    done = subprocess.run([*program, *only], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    states = {section["name"]: (section["state"], section["reason"]) for section in report["sections"]}
    assert states == {
        "doctor": ("done", ""),
        "bandwidth": ("no GPU", "no GPU was found"),
        "fp16-bundle": ("no GPU", "no GPU was found"),
    }
    page = (tmp_path / "gpu-check.md").read_text()
    assert "Nothing was measured on a GPU in this run." in page and "| ort-cpu | ok |" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-check.json", "gpu-check.md"]


SECTION = """
import sys, time
name, output = sys.argv[1], sys.argv[3]
open(output, "w").write('{"what": "a | b", "ms": 1.23456789}\\n')
if name == "bandwidth":
    sys.exit("ValueError: it broke")
if name == "kernels":
    time.sleep(60)
if name == "demo-bundle":
    import os; os.kill(os.getpid(), 11)
"""


def arguments(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(output_dir=tmp_path, family="qwen2_vl", size="2b", not_installed=[])


def test_what_goes_wrong_in_a_section_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "gpu_sections.py").write_text(SECTION)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setitem(gpu_check.LEAST, "kernels", 1)
    given = arguments(tmp_path)
    sections = [
        gpu_check.run_section("doctor", given, 60),
        gpu_check.run_section("bandwidth", given, 60),
        gpu_check.run_section("kernels", given, 1.5),
        gpu_check.run_section("demo-bundle", given, 60),
        gpu_check.run_section("checkpoint", given, 20),
    ]
    assert [(section.state, len(section.rows)) for section in sections] == [
        ("done", 1),
        ("failed", 1),
        ("failed", 1),
        ("failed", 1),
        ("skipped", 0),
    ]
    reasons = [section.reason for section in sections]
    assert reasons[1] == "exit code 1: ValueError: it broke" and "when the time was over" in reasons[2]
    assert "exit code -11" in reasons[3] and reasons[4] == "20 s are left, and it takes 30 s or more"
    gpu_check._write(given, sections, 80)
    page = (tmp_path / "gpu-check.md").read_text()
    assert "| a \\| b | 1.235 |" in page and "ValueError: it broke" in page


def wheel(folder: Path, name: str, content: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", content)
        file.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        file.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{name}-1.0.dist-info/RECORD", "")


def test_wheels_of_a_folder_are_put_on_top(tmp_path: Path) -> None:
    """Also over a package that is installed, and with the others still there."""
    wheels, output = tmp_path / "wheels", tmp_path / "output"
    wheels.mkdir()
    output.mkdir()
    wheel(wheels, "onnxruntime", "__version__ = 'ours'")
    (wheels / "other-1.0-cp27-cp27m-win32.whl").write_bytes(b"")
    failures = gpu_check.install_wheels(wheels, output)
    program = "import onnxruntime, numpy; print(onnxruntime.__version__, numpy.__name__)"
    environment = gpu_check._environment(output)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["ours", "numpy"], done.stderr
    assert len(failures) == 1 and failures[0].startswith("other-1.0")


def test_a_folder_without_wheels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no wheels"):
        gpu_check.install_wheels(tmp_path, tmp_path)


# The sections, on a GPU that is the CPU -------------------------------------------------------------


@pytest.fixture
def task(
    tiny_bundle: Bundle, tmp_path: Path, gpu: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> Task:
    gpu()
    monkeypatch.setattr(device, "cuda_device", lambda: GPU)
    monkeypatch.setattr(gpu_measures, "COPIED", 1 << 22)
    monkeypatch.setattr(gpu_measures, "REPEATS", 1)
    for name in ("demo", "fp16"):
        (tmp_path / f"{name}-bundle").symlink_to(tiny_bundle.path)
    return Task(tmp_path, "qwen2_vl", "2b")


def test_parity_is_with_every_backend_and_errors_are_rows(task: Task) -> None:
    rows = {row["backend"]: row for row in gpu_sections.demo_parity(task)}
    assert list(rows) == ["ort-cuda", "ort-tensorrt", "ort-trt-rtx", "trt"]
    for backend in ("ort-cuda", "ort-tensorrt"):
        assert rows[backend]["equal up to the first that differs"] == rows[backend]["tokens"] == 32
        assert rows[backend]["largest difference of logits, over the largest"] == 0
    assert rows["ort-trt-rtx"]["error"].startswith("BackendError: ")


def test_speed_is_against_the_bandwidth(task: Task, tiny_bundle: Bundle) -> None:
    rows = [row for row in gpu_sections.fp16_speed(task) if row["backend"] == "ort-cuda"]
    assert [row["what"].split(",")[0] for row in rows] == ["step"] * 3 + [
        "prefill",
        "pictures 1",
        "pictures 2",
    ]
    weights = sum(path.stat().st_size for path in tiny_bundle.path.glob("onnx/decoder*"))
    for number, row in enumerate(rows[:3], 1):
        assert row["bytes read"] - weights == number * (rows[0]["bytes read"] - weights) > 0
        assert row["share of the limit"] == pytest.approx(row["tokens/s"] / row["limit, tokens/s"])
    assert rows[0]["against 1 row"] == 1


def test_a_bundle_that_was_not_made_is_named(task: Task) -> None:
    with pytest.raises(FileNotFoundError, match="there is no int4-bundle, see its section"):
        list(gpu_sections.int4_speed(task))


def test_an_engine_that_is_not_built_is_an_answer(task: Task) -> None:
    """The tiny bundle is in fp32 and in the portable form, which no TensorRT builds."""
    rows = list(gpu_sections.demo_engines(task))
    assert [row["flavour"] for row in rows] == ["tensorrt", "tensorrt-rtx"]
    assert all(row["built"] is False and row["answer"].startswith("error: ") for row in rows)
