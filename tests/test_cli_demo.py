"""The demo: the table, the self-contained report, what it says when it cannot; and real interrupts of three verbs."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from safecode_trt.cli.demo import SCENES
from safecode_trt.eval import demo_scenes as demo_module
from safecode_trt.eval.demo_scenes import load_scenes
from tests.cli_runner import ASK, ROOT, call, fails, said, start
from tests.null_bundle import DEMO, write_null_bundle

SECONDS = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("demo") / "bundle")


def test_the_table_and_the_last_line(bundle: Path, tmp_path: Path) -> None:
    result = call("demo", bundle, "--backend", "null", "--report", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    for column in ("picture", "request", "plain", "verdict", "SafeCoDe", "ms"):
        assert column in result.stdout
    last = result.stdout.rstrip().splitlines()[-1]
    assert " run " in last and "--image" in last and str(bundle) in last


def test_the_report_needs_nothing_from_elsewhere(bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.html"
    assert call("demo", bundle, "--backend", "null", "--report", report).exit_code == 0
    page = report.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(load_scenes(SCENES).scenes) == 8
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    assert page.count('class="step"') == 8 * 5


def test_json(bundle: Path, tmp_path: Path) -> None:
    result = call("demo", bundle, "--backend", "null", "--report", tmp_path / "r.html", "--json")
    rows = json.loads(result.stdout)
    assert [row["unsafe"] for row in rows] == [True, False] * 4
    assert all(row["safecode"]["verdict"] and row["safecode"]["trace"] for row in rows)


def test_what_it_cannot_do(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(call("demo", bundle, "--backend", "null", "--report", tmp_path / "file" / "r.html"), 2, "--report")
    fails(call("demo", tmp_path / "none", "--report", tmp_path / "r.html"), 1, "not a folder")


def test_an_interrupted_demo_leaves_no_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "refuses", interrupt)
    result = call("demo", bundle, "--backend", "null", "--report", tmp_path / "r.html")
    assert result.exit_code != 0 and not (tmp_path / "r.html").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("nothing happened")
        time.sleep(0.02)


def test_ctrl_c_in_run(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "bundle", capacity=50_000)
    process = start("run", bundle, "--mode", "plain", "--backend", "null", "--max-new-tokens", 49_000, ASK)
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and said(errors) == ["interrupted"]


def test_ctrl_c_in_export(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx_ir")
    parent = tmp_path / "out"
    process = start("export", "--model", DEMO, "--output", parent / "bundle")
    wait_for(lambda: parent.is_dir() and any(parent.iterdir()))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and errors.split() == ["interrupted"]
    assert list(parent.iterdir()) == []


def test_the_readme_shows_what_the_model_says(demo_bundle: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    answers = [
        call("run", demo_bundle, "--image", ROOT / "examples" / "socket.png", "--mode", mode, ASK).stdout
        for mode in ("plain", "safecode")
    ]
    assert f"```text\n{''.join(answers)}```" in readme
