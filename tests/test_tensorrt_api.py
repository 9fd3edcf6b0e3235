"""Every name of TensorRT that the sources use is one that the real packages have.

TensorRT-RTX is asked as it is. TensorRT's own bindings need libraries that need a GPU to be of use; they are imported
over stubs of them. They come from the environment (the extra `dev`), and as wheels of other versions from the folder
that SAFECODE_TRT_BINDINGS names: `pip download --no-deps tensorrt-cu13-bindings==10.16.* --dest FOLDER`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tensorrt_names import Names, names_of, to_json
from tests.tensorrt_probe import problems

ROOT = Path(__file__).parents[1]
BINDINGS = "tensorrt_bindings"
DISTRIBUTION = "tensorrt-cu13-bindings"
FOLDER = "SAFECODE_TRT_BINDINGS"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
SINCE = {"tensorrt": (10, 3), "tensorrt_10_15": (10, 15)}
RTX = (*SINCE, "tensorrt_rtx")


def sources() -> list[Path]:
    """The files that name a TensorRT package in an annotation, or a class of one."""
    folders = ("export", "runtime", "models", "safecode_trt")
    files = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return sorted(path for path in files if re.search(r"import tensorrt|\btrt\.[A-Z]", read(path)))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def used() -> Names:
    names = Names()
    for path in sources():
        found = names_of(read(path))
        names.uses += found.uses
        names.subclasses += found.subclasses
    return names


def wheels() -> list[Path]:
    """The bindings for this Python in the folder that the environment names."""
    if FOLDER not in os.environ:
        return []
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    return sorted(
        path for path in Path(os.environ[FOLDER]).glob("tensorrt_cu1*_bindings-*.whl") if tag in path.name
    )


def check(package: Path, version: str, folder: Path) -> None:
    """Holds the bindings in the folder `package`; what they are too old for, or TensorRT-RTX has alone, is missed."""
    found = tuple(map(int, version.split(".")[:2]))
    there = [name for name, since in SINCE.items() if found >= since]
    assert ask(package, version, folder, *there) == {"version": version, "problems": []}
    missed = ask(package, version, folder, *RTX)["problems"]
    assert isinstance(missed, list) and "there is no IBuilderConfig.set_compute_capability" in missed
    aliased = "there is no ICudaEngine.get_aliased_input_tensor"
    assert (aliased in missed) == (found < SINCE["tensorrt_10_15"])


def ask(package: Path, version: str, folder: Path, *packages: str) -> dict[str, object]:
    """What the bindings lack of the names used of these packages, asked in an interpreter of its own."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to make stub libraries with")
    stub = folder / "stub.c"
    stub.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in LIBRARIES:
        target = folder / f"lib{library}.so.{version.split('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, stub], check=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tensorrt_probe.py"), BINDINGS, *packages],
        input=json.dumps(to_json(used())),
        env={"PYTHONPATH": str(package), "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.trt
def test_tensorrt_rtx_has_what_is_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert problems(trt, to_json(used()), RTX) == []


@pytest.mark.trt
def test_installed_bindings_have_what_is_used(tmp_path: Path) -> None:
    found = importlib.util.find_spec(BINDINGS)
    if found is None or found.origin is None:
        pytest.skip(f"{DISTRIBUTION} is not installed")
    version = importlib.metadata.version(DISTRIBUTION)
    check(Path(found.origin).parents[1], version, tmp_path)


@pytest.mark.trt
def test_bindings_in_wheels_have_what_is_used(tmp_path: Path) -> None:
    if not wheels():
        pytest.skip(f"{FOLDER} names no folder with wheels of {DISTRIBUTION} for this Python")
    for wheel in wheels():
        folder, version = tmp_path / wheel.stem, wheel.name.split("-")[1]
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder / "package")
        check(folder / "package", version, folder)


def test_the_sources_use_tensorrt() -> None:
    """The collector sees what it is there for."""
    names = used()
    assert [path.name for path in sources()] == [
        "engine_builder.py",
        "trt_engine.py",
        "trt_library.py",
        "probe_engine.py",
    ]
    paths = {(use.package, use.path) for use in names.uses}
    assert {
        ("tensorrt", "Builder.__init__"),
        ("tensorrt", "OnnxParser.parse"),
        ("tensorrt", "IOptimizationProfile.set_shape"),
        ("tensorrt", "MemoryPoolType.WORKSPACE"),
        ("tensorrt", "IBuilderConfig.progress_monitor"),
        ("tensorrt", "ILogger.Severity.ERROR"),
        ("tensorrt_rtx", "IBuilderConfig.set_compute_capability"),
        ("tensorrt", "Runtime.deserialize_cuda_engine"),
        ("tensorrt", "ICudaEngine.device_memory_size_v2"),
        ("tensorrt", "ExecutionContextAllocationStrategy.USER_MANAGED"),
        ("tensorrt", "IExecutionContext.execute_async_v3"),
        ("tensorrt_10_15", "ICudaEngine.get_aliased_input_tensor"),
        ("tensorrt_rtx", "IRuntimeConfig.cuda_graph_strategy"),
        ("tensorrt_rtx", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE"),
    } <= paths
    assert {subclass.base for subclass in names.subclasses} == {"ILogger", "IProgressMonitor"}


@pytest.mark.trt
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("builder.create_network(", "builder.create_netwrok(", "there is no Builder.create_netwrok"),
        ("trt.MemoryPoolType.WORKSPACE", "trt.MemoryPoolType.WORKPLACE", "no MemoryPoolType.WORKPLACE"),
        ("trt.OnnxParser(", "trt.OnnxPraser(", "there is no OnnxPraser"),
        (
            "config.progress_monitor =",
            "config.progres_monitor =",
            "there is no IBuilderConfig.progres_monitor",
        ),
        ("config.num_compute_capabilities", "config.nb_compute_capabilities", "nb_compute_capabilities"),
        (
            "parser.parse(model, str(path))",
            "parser.parse(model, file=str(path))",
            "OnnxParser.parse does not take",
        ),
        (
            "profile.set_shape(name, least, usual, most)",
            "profile.set_shape(name, least, usual)",
            "does not take",
        ),
        ("def step_complete(", "def step_completed(", "IProgressMonitor.step_complete is overridden wrongly"),
        ("parent_phase: str | None, num_steps", "num_steps", "IProgressMonitor.phase_start is overridden"),
        ("trt.IProgressMonitor)", "trt.IProgressMoniter)", "there is no IProgressMoniter"),
        ("class Log(trt.ILogger)", "class Log(trt.ILoger)", "there is no ILoger"),
        (".execute_async_v3(", ".execute_async_v4(", "there is no IExecutionContext.execute_async_v4"),
        (".device_memory_size_v2", ".device_memory_size_v3", "there is no ICudaEngine.device_memory_size_v3"),
        (
            "set_device_memory(memory.handle, memory.nbytes)",
            "set_device_memory(memory.handle)",
            "does not take",
        ),
        ("config.cuda_graph_strategy", "config.cuda_graphs", "there is no IRuntimeConfig.cuda_graphs"),
        (".get_aliased_input_tensor(", ".get_alias(", "there is no ICudaEngine.get_alias"),
        ("trt.DataType.BF16", "trt.DataType.BFLOAT16", "there is no DataType.BFLOAT16"),
    ],
)
def test_a_misspelt_name_is_found(right: str, wrong: str, message: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    source = next(text for text in map(read, sources()) if right in text)
    found = problems(trt, to_json(names_of(source.replace(right, wrong))), RTX)
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    "line",
    [
        "network = builder.create_network(0)",
        "name = trt.Builder(log).logger.name",
        "builder.create_network(0).num_layers",
        "config = make()",
    ],
)
def test_what_is_not_annotated_is_refused(line: str) -> None:
    source = f"""
def make() -> tensorrt.IBuilderConfig: ...
def f(builder: tensorrt.Builder, trt, log):
    {line}
"""
    with pytest.raises(AssertionError, match="line 4: annotate what"):
        names_of(source)
