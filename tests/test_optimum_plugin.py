"""The plug-in as Optimum loads it: from the namespace folder, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import click
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.cli.export import command as export_command

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
    assert "is not a folder; expected the folder of a Hugging Face checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_are_those_of_our_own_command() -> None:
    """Names, defaults and choices; Optimum's command line is argparse, ours is click."""
    path = PLUGIN / "optimum" / "commands" / "register" / "safecode_trt.py"
    described = importlib.util.spec_from_file_location("registered", path)
    assert described is not None and described.loader is not None
    plugin = importlib.util.module_from_spec(described)
    described.loader.exec_module(plugin)
    parser = ArgumentParser(add_help=False)
    plugin.SafeCodeExportCommand.parse_args(parser)
    needed = ["--model", "m", "--output", "o"]
    defaults = export_command.make_context("export", [*needed]).params
    listed = {name: list(x) if isinstance(x, tuple) else x for name, x in defaults.items()}
    assert vars(parser.parse_args(needed)) == listed
    ours = {}
    for option in export_command.params:
        assert isinstance(option, click.Option) and option.name is not None
        # argparse has no pairs of flags: of such a pair it has the one that changes the default.
        flags = option.secondary_opts if option.secondary_opts and defaults[option.name] else option.opts
        choices = tuple(option.type.choices) if isinstance(option.type, click.Choice) else None
        ours[option.name] = [*flags], option.required, choices
    theirs = {
        action.dest: (
            [flag for flag in action.option_strings if flag.startswith("--")],
            action.required,
            None if action.choices is None else tuple(action.choices),
        )
        for action in parser._actions
    }
    assert theirs == ours


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
