"""Ctrl-C at any moment from the first line of ours on: one word, exit code 130, no traceback."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli_runner import ASK, said, start
from tests.null_bundle import write_null_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are different there")

SECONDS = 60
READY = (
    "import sys; from safecode_trt.__main__ import interrupt, main; interrupt.leave_quietly(); "
    "sys.stderr.write('up '); sys.stderr.flush(); main()"
)
IGNORED = (
    "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from safecode_trt.__main__ import main; "
    "os.kill(os.getpid(), signal.SIGINT); main()"
)
AT_IMPORT = """
import time
from safecode_trt import interrupt
interrupt.leave_quietly()
interrupt.raise_between_imports()
try:
    import interrupted_in_the_middle
    time.sleep(20)
except KeyboardInterrupt:
    print("raised")
"""
INTERRUPTED = """
import os, signal, time
try:
    for _ in range({times}):
        os.kill(os.getpid(), signal.SIGINT)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    print("imported")
except KeyboardInterrupt:
    print("disturbed")
    raise
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("interrupt") / "bundle", capacity=50_000)


@pytest.mark.parametrize("delay", [0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3])
def test_while_python_imports(bundle: Path, delay: float) -> None:
    options = ("--backend", "null", "--mode", "plain", "--max-new-tokens", 49_000)
    process = start("run", bundle, *options, ASK, entry=("-c", READY))
    assert process.stderr is not None and process.stderr.read(3) == "up "
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, said(errors)) == (130, ["interrupted"])


@pytest.mark.parametrize(("times", "output"), [(1, ["imported", "raised"]), (2, ["disturbed", "raised"])])
def test_an_import_is_not_disturbed_unless_one_insists(tmp_path: Path, times: int, output: list[str]) -> None:
    """onnxruntime, interrupted in its import, is "not installed"; numpy prints its traceback."""
    (tmp_path / "interrupted_in_the_middle.py").write_text(INTERRUPTED.format(times=times))
    process = start(entry=("-c", AT_IMPORT), path=tmp_path)
    found, errors = process.communicate(timeout=SECONDS)
    assert found.split() == output, errors


def test_a_background_job_is_not_interrupted(bundle: Path) -> None:
    """Where a shell has SIGINT ignored, it stays ignored."""
    process = start("inspect", bundle, entry=("-c", IGNORED))
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "idefics3" in output, errors
