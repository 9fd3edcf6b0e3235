"""The command line from outside: help, exit codes, one-line errors, and what goes to which stream."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import safecode_trt
from safecode_trt.bundle import Bundle
from safecode_trt.cli import VERBS, console
from safecode_trt.errors import BundleError
from tests.cli_runner import ROOT, call, fails, start
from tests.null_bundle import write_null_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_and_shows_an_example(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0 and result.stderr == ""
    assert f"safecode-trt {verb}" in result.stdout.split("Example:")[1].split("Options:")[0]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_program_lists_its_verbs_in_order_of_use() -> None:
    lines = call("--help").stdout.split("Commands:")[1].splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == list(VERBS)
    assert call("-h").stdout == call("--help").stdout


def test_every_verb_is_a_file() -> None:
    files = (ROOT / "safecode_trt" / "cli").glob("*.py")
    assert {path.stem for path in files if "\ndef command(" in path.read_text(encoding="utf-8")} == set(VERBS)


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0 and result.stdout.split()[-1] == safecode_trt.__version__


def test_nothing_is_a_usage_error_with_help() -> None:
    result = call()
    assert result.exit_code == 2 and "Usage:" in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["explian"], "No such command 'explian'; did you mean explain? (see `"),
        (["--fly"], "No such option"),
        (["run", "x", "y", "--quiet"], "--quiet stands before the verb: safecode-trt --quiet run ..."),
        (["run", "x", "what", "is", "this"], "(is this); an argument with spaces needs quotes"),
        (["run", "", "y"], "Invalid value for 'BUNDLE': the path is empty"),
        (["run", "x", "y", "--image", ""], "Invalid value for '--image': the path is empty"),
        (["bench", "x", "--plot", "x.txt"], "x.txt must end in .png, .svg, .pdf"),
        (
            ["bench", "x", "--plot", "none/x.png"],
            "the folder none does not exist; make it, or choose another",
        ),
        (["run"], "Missing argument 'BUNDLE'"),
        (["run", "x"], "Missing argument 'PROMPT'"),
        (["run", "x", "y", "--mode", "fast"], "'fast' is not one of 'plain', 'vcd', 'safecode-paper'"),
        (["run", "x", "y", "--seed", "one"], "'one' is not a valid integer"),
        (["run", "x", "y", "--top-p", "3"], "error: --top-p must be between 0 and 1, got 3.0"),
        (["run", "x", "y", "--threads", "-1"], "error: --threads must be 0 (all cores) or more, got -1"),
        (["run", "x", "y", "--stop", ""], "error: --stop must be text that is not empty, got ''"),
        (["run", "x", "y", "--max-new-tokens", "0"], "error: --max-new-tokens must be at least 1, got 0"),
        (["run", "x", "y", "--judge-threshold", "2"], "error: --judge-threshold must be between 0 and 1"),
        (["build", "x", "--flavour", "tensorrt", "--sm", "y"], "error: --sm must be compute capabilities"),
        (["build", "x", "--flavour", "tensorrt", "--max-rows", "0"], "error: --max-rows must be at least 1"),
        (
            ["eval", "x", "--benchmark", "b", "--data", "d", "--output", "o"],
            "--benchmark must be one of mssbench",
        ),
        (
            ["eval", "x", "--benchmark", "b", "--data", "d", "--output", "o", "--modes", "m"],
            "error: --modes must be out of plain",
        ),
        (["export", "--model", "x"], "Missing option '--output'"),
        (["export", "--model", "x", "--output", "y", "--precision", "int2"], "'int2' is not one of"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    fails(call(*arguments), 2, message)


def test_a_checkpoint_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "none"):
        fails(
            call("export", "--model", tmp_path / name, "--output", tmp_path / "b"),
            1,
            f"{name}' is not a folder",
        )


@pytest.mark.parametrize("verb", ["run", "chat", "verify", "inspect"])
def test_a_wrong_path_is_one_line(verb: str, tmp_path: Path) -> None:
    arguments = [verb, tmp_path / "nowhere", *(["hello"] if verb == "run" else [])]
    fails(call(*arguments), 1, "is not a folder; expected a bundle; fix: safecode-trt export")


def test_a_demo_without_its_bundle_says_what_makes_it(tmp_path: Path) -> None:
    fails(call("demo", tmp_path / "none"), 1, "expected the demo bundle; fix: make demo")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = call("--debug", "verify", tmp_path / "nowhere")
    assert isinstance(result.exception, BundleError)


def test_a_mistake_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def broken(*args: object, **options: object) -> Bundle:
        raise ValueError("two\nlines")

    monkeypatch.setattr(Bundle, "open", broken)
    fails(call("verify", bundle), 1, "ValueError: two lines (`safecode-trt --debug ...` shows where)")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def broken(*args: object, **options: object) -> Bundle:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(Bundle, "open", broken)
    fails(call("verify", bundle), 1, "pip install 'safecode-trt[export]'")


def test_an_interrupt_is_one_word(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def interrupted(*args: object, **options: object) -> Bundle:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bundle, "open", interrupted)
    result = call("verify", bundle)
    assert result.exit_code == 130 and result.stderr.split() == ["interrupted"] and result.stdout == ""


def test_a_closed_pipe_is_quiet(bundle: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("inspect", bundle, "--json", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 1) and errors == ""


def test_text_cannot_command_the_terminal() -> None:
    assert console.printable("a\x1b[2Jb\x07\x9b\r\n\tc") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\n\tc"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2**33, "8.6 GB")])
def test_sizes_for_people(count: int, text: str) -> None:
    assert console.size(count) == text
