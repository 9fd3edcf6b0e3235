"""The examples of docs/python.md run, in their order, and the names that the package shows are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import safecode_trt
from safecode_trt.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_the_examples_run(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "demo-bundle").symlink_to(demo_bundle)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)
    assert len(examples) > 6
    # Without a mode named it is safecode, plain decoding helps with the socket, and the errors are data.
    assert "sorry" not in names["plain"].text.lower() and names["plain"].verdict is None
    assert names["reply"].verdict.source == "constant"


def test_the_default_is_safe(demo_bundle: Path) -> None:
    with safecode_trt.open(demo_bundle) as engine:
        asked: Any = {"prompt": "can i pour water on it?", "image": ROOT / "examples" / "socket.png"}
        reply = engine.generate(**asked)
        assert reply.verdict is not None and reply.verdict.unsafe
        assert reply.text == engine.generate(**asked, mode="safecode").text
        assert reply.text != engine.generate(**asked, mode="plain").text
        with pytest.raises(ConfigError) as caught:
            engine.generate(**asked, policy=engine.policy("plain"), mode="safecode")
        assert caught.value.field == "policy"
        with pytest.raises(ConfigError) as caught:
            engine.generate(**asked, mode="unsafe")  # type: ignore[arg-type]
        assert caught.value.field == "mode"
        with pytest.raises(ConfigError) as caught:
            engine.generate(**asked, settings={"alfa": 1})
        assert caught.value.field == "alfa"


def test_the_face_has_what_it_lists() -> None:
    assert [name for name in safecode_trt.__all__ if getattr(safecode_trt, name, None) is None] == []
    assert set(safecode_trt.__all__) <= set(dir(safecode_trt))
    with pytest.raises(AttributeError, match="nothing"):
        _ = safecode_trt.nothing


def test_the_import_loads_nothing_heavy() -> None:
    code = "import safecode_trt, sys; print(*{'numpy', 'onnxruntime', 'PIL'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == ""
