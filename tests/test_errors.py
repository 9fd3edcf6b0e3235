"""Failures as data: a program that acts on them goes by their fields, whatever their messages say."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from safecode_trt import errors
from safecode_trt.config import RuntimeConfig, SafeCodeConfig, SamplingParams
from safecode_trt.doctor import findings
from safecode_trt.errors import BackendError, ConfigError, SafeCodeError
from safecode_trt.manifest import BUNDLE_JSON
from tests.cli_runner import call, said
from tests.null_bundle import write_null_bundle

KINDS = [kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), SafeCodeError)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message is x."""
    init = SafeCodeError.__init__

    def replaced(self: SafeCodeError, message: str, **data: Any) -> None:
        init(self, "x", **data)

    monkeypatch.setattr(SafeCodeError, "__init__", replaced)


RUN = ("run", "{bundle}", "--backend", "null", "hello")
EVAL = ("eval", "{bundle}", "--benchmark", "demo-world", "--data", "w", "--output", "o", "--backend", "null")
BAD = [
    ((*RUN, "--top-p", "0"), 2, "--top-p", None),
    ((*RUN, "--max-new-tokens", "0"), 2, "--max-new-tokens", None),
    ((*RUN, "--threads", "-1"), 2, "--threads", None),
    ((*RUN, "--set", "top_k=-1"), 2, "--set: top_k", None),
    ((*RUN, "--set", "colour=1"), 2, "--set: colour", None),
    ((*RUN, "--set", "release.unsafe_top_p=7"), 2, "--set: release.unsafe_top_p", None),
    ((*RUN, "--mode", "safecode-release", "--set", "shift=3"), 2, "--set: shift", None),
    ((*RUN, "--policy", "fast"), 2, "--policy", None),
    ((*RUN, "--judge", "gpt"), 2, "--judge", None),
    ((*RUN, "--judge", "endpoint:http://host"), 2, "--judge", None),
    ((*RUN, "--judge", "endpoint:ftp://host#m"), 2, "--judge", None),
    ((*RUN, "--judge-threshold", "0.3"), 2, "--judge-threshold", "pass --set threshold=P"),
    ((*RUN, "--judge", "constant:0", "--judge-threshold", "3"), 2, "--judge-threshold", None),
    ((*RUN, "--judge", "constant:0", "--judge-timeout", "0"), 2, "--judge-timeout", None),
    ((*RUN, "--judge", "constant:0", "--mode", "plain"), 2, "--judge", "choose another --mode"),
    ((*RUN, "--judge", "constant:0", "--set", "threshold=0.1"), 2, "--set: threshold", "--judge-threshold"),
    ((*RUN, "--store-images", "d"), 2, "--store-images", "pass --trace or --audit"),
    ((*RUN, "--trace", "t", "--audit", "t"), 2, "--trace", None),
    (("run", "nowhere", "hello"), 1, None, "safecode-trt export --model CHECKPOINT --output nowhere"),
    ((*EVAL, "--workers", "2"), 2, "--workers", "pass --engine ray"),
    ((*EVAL, "--modes", "fast"), 2, "--modes", None),
    ((*EVAL, "--answer-judge", "human-csv"), 2, "--labels", None),
    ((*EVAL, "--answer-bundle", "b"), 2, "--answer-bundle", None),
    ((*EVAL, "--answer-endpoint", "http://h"), 2, "--answer-endpoint", None),
    ((*EVAL, "--shard", "9/2"), 2, "--shard", None),
    (("refusals", "{bundle}", "--share", "2"), 2, "--share", None),
    (("build", "{bundle}", "--flavour", "tensorrt-rtx", "--sm", "x"), 2, "--sm", None),
    (("build", "{bundle}", "--flavour", "tensorrt-rtx", "--max-rows", "0"), 2, "--max-rows", None),
    (("demo", "nowhere"), 1, None, "make demo"),
]


@pytest.mark.parametrize(("words", "code", "option", "fix"), BAD, ids=[" ".join(bad[0][2:]) for bad in BAD])
def test_no_message_is_read(
    bundle: Path,
    tmp_path: Path,
    silent: None,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    option: str | None,
    fix: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    result = call(*(word.format(bundle=bundle) for word in words))
    (line,) = said(result.stderr)
    assert result.exit_code == code, line
    assert line.startswith(f"error: {option} x" if option else "error: x"), line
    assert (fix is None and "fix:" not in line) or (fix is not None and fix in line.split("; fix: ")[1]), line


def test_the_doctor_names_the_remedy(silent: None) -> None:
    error = BackendError("onnxruntime is not installed", fix="pip install onnxruntime")
    found = findings._explained("ort-cpu", "absent", error)
    assert (found.detail, found.fix) == ("x", "pip install onnxruntime")


def test_a_bundle_names_its_file_and_the_key(bundle: Path) -> None:
    path = bundle / BUNDLE_JSON
    path.write_text(path.read_text().replace('"image_seq_len"', '"image_len"', 1))
    result = call("verify", bundle)
    (line,) = said(result.stderr)
    assert result.exit_code == 1 and line.startswith(f"error: {path}: geometry.image_len is not a known key")
    assert line.endswith(f"fix: safecode-trt export --model CHECKPOINT --output {bundle} --overwrite")


def test_codes_are_stable_and_different() -> None:
    codes = {kind.__name__: kind.code for kind in KINDS}
    assert len(set(codes.values())) == len(codes)
    assert all(re.fullmatch("[a-z_]+", code) for code in codes.values())
    assert codes["ConfigError"] == "config" and codes["CapacityError"] == "capacity"


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_crosses_processes_whole(kind: type[SafeCodeError]) -> None:
    error = kind("must be small", field="size", fix="pass less", where="a.json")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind and vars(back) == vars(error)
    assert str(back) == "a.json: size must be small; fix: pass less"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SamplingParams(top_p=2), "top_p"),
        (lambda: SamplingParams(stop=("",)), "stop"),
        (lambda: SafeCodeConfig(threshold=2), "threshold"),
        (lambda: SafeCodeConfig(contrast="up"), "contrast"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(threads=-1), "threads"),
    ],
)
def test_settings_name_their_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field and str(caught.value).startswith(f"{field} must be ")
