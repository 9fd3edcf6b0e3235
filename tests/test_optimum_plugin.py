"""The plug-in as Optimum loads it: from the namespace folder, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle

pytest.importorskip("optimum")

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "optimum_plugin"


def optimum_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join((str(PLUGIN), str(ROOT))))
    return subprocess.run(
        [sys.executable, "-m", "optimum.commands.optimum_cli", "export", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_command_is_listed() -> None:
    done = optimum_cli("--help")
    assert done.returncode == 0, done.stderr
    assert "safecode-trt" in done.stdout


@pytest.mark.slow
def test_command_makes_a_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    target = tmp_path / "bundle"
    done = optimum_cli(
        "safecode-trt",
        "--model",
        str(tiny_checkpoint),
        "--output",
        str(target),
        "--precision",
        "int8",
        "--no-verify",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(target))
    assert Bundle.open(target).manifest.precision == "int8"


def test_a_failure_is_one_line(tmp_path: Path) -> None:
    done = optimum_cli("safecode-trt", "--model", str(tmp_path / "none"), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "config.json is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_namespace_folders_have_no_init() -> None:
    assert not list(PLUGIN.rglob("__init__.py"))


def test_loading_the_plug_in_is_cheap() -> None:
    program = (
        "import sys; import optimum.commands.register.safecode_trt as plugin; "
        "assert plugin.REGISTER_COMMANDS; "
        "print(sorted({'onnx_ir', 'onnxruntime', 'safecode_trt.export'} & set(sys.modules)))"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join((str(PLUGIN), str(ROOT))))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"
