"""chat: turns, pictures and commands; what a reply says is tested with run."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from tests.cli_runner import ASK, call, said, start
from tests.null_bundle import write_null_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle", capacity=256)


def chat(bundle: Path, *arguments: object, lines: str) -> Result:
    return call("chat", bundle, "--backend", "null", "--max-new-tokens", 3, *arguments, text=lines)


def test_chat_keeps_the_conversation(bundle: Path, picture: Path) -> None:
    lines = f"{ASK}\n\n/mode plain\nand now?\n/new\n{ASK}\n/quit\nnever\n"
    result = chat(bundle, "--image", picture, lines=lines)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 3 and result.stderr.count("tokens, first") == 3
    assert result.stderr.count("p_unsafe") == 1


def test_chat_explains_and_goes_on(bundle: Path, picture: Path) -> None:
    lines = f"/help\n/mode fast\n/fast\n/image nowhere.png\n/image {picture}\n{ASK}\n{'water ' * 300}\n"
    result = chat(bundle, lines=lines)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("/quit") == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    mode, missing, long = errors
    assert mode.startswith("error: mode must be one of plain, vcd")
    assert "nowhere.png does not exist" in missing and "positions" in long


def test_another_mode_brings_its_own_stages(bundle: Path, picture: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = f"{ASK}\n/new\n/mode plain\n{ASK}\n"
    options = ("--image", picture, "--policy", "gate", "--set", "fallback=error", "--trace", trace)
    result = chat(bundle, *options, lines=lines)
    assert result.exit_code == 0, result.output
    assert "mode plain, without the stages of --policy" in result.stderr
    gated, plain = (json.loads(line) for line in trace.read_text().splitlines())
    assert gated["verdict"] is not None and gated["settings"]["stages"] == ["gate"]
    assert (plain["mode"], plain["verdict"], plain["settings"]) == ("plain", None, {"fallback": "error"})


def test_pictures_belong_to_the_turns_that_show_them(bundle: Path, picture: Path, tmp_path: Path) -> None:
    other, trace = tmp_path / "other.png", tmp_path / "trace.jsonl"
    Image.new("RGB", (30, 40), (0, 0, 250)).save(other)
    lines = (
        f"{ASK}\n/image {other}\n{'water ' * 300}\n/image {picture}\nwhich?\n"
        f"/new\nagain\n/clear\nno picture\n"
    )
    result = chat(bundle, "--image", picture, "--trace", trace, lines=lines)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    shown = [[turn["images"] for turn in record["messages"]] for record in records]
    assert shown == [
        [1],
        [1, 0, 2],
        [3],
        [0],
    ]  # a turn that failed is forgotten, its picture is shown by the next
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (picture, other))
    assert [record["image_sha256"] for record in records] == [
        [first],
        [first, second, first],
        [first, second, first],
        [],
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are different there")
def test_ctrl_c_leaves_chat(bundle: Path) -> None:
    process = start("chat", bundle, "--backend", "null", stdin=subprocess.PIPE)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and said(errors) == ["interrupted"]
