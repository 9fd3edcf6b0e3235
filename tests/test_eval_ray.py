"""Ray: two actors on this machine answer as one session does. Skipped where the extra `ray` is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli_runner import start
from tests.eval_runner import answers, evaluate, summary
from tests.null_bundle import write_null_bundle
from write_demo_items import write_items

pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow


def on_ray(bundle: Path, world: Path, output: Path) -> tuple[int, str]:
    """Through the program, for Ray leaves threads and signal handlers in a process."""
    data = ("--benchmark", "demo-world", "--data", world, "--output", output, "--max-new-tokens", 4)
    process = start("eval", bundle, *data, "--backend", "null", "--engine", "ray", "--workers", 2)
    _, errors = process.communicate(timeout=200)
    return process.returncode, errors


def test_two_workers_answer_as_one(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "bundle", capacity=256)
    write_items(tmp_path / "world", "test", 24)
    evaluate(bundle, tmp_path / "world", tmp_path / "here")
    code, errors = on_ray(bundle, tmp_path / "world", tmp_path / "ray")
    assert code == 0, errors
    assert "Traceback" not in errors
    assert answers(tmp_path / "ray") == answers(tmp_path / "here")
    assert [arm["scores"] for arm in summary(tmp_path / "ray")["arms"]] == [
        arm["scores"] for arm in summary(tmp_path / "here")["arms"]
    ]
    # A file gone bad on a worker's side is one line here.
    next((tmp_path / "bundle").glob("embed*")).write_bytes(b"")
    code, errors = on_ray(bundle, tmp_path / "world", tmp_path / "broken")
    assert code == 1 and errors.splitlines()[-1].startswith("error: "), errors
