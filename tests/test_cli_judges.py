"""--judge and --explain-refusals on the command line; the key of an endpoint is nowhere to be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli_runner import ASK, call, fails, said
from tests.http_server import Response, completion, serving
from tests.null_bundle import write_null_bundle

KEY = "sk-nobody-may-see-this"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


def run(bundle: Path, *arguments: object) -> Result:
    return call("run", bundle, "--backend", "null", "--max-new-tokens", 3, *arguments, ASK)


def test_a_constant_judge(bundle: Path, picture: Path) -> None:
    result = run(bundle, "--image", picture, "--judge", "constant:0.9")
    assert result.exit_code == 0, result.output
    assert "unsafe (p_unsafe 0.90, says constant)" in result.stderr


def test_several_judges(bundle: Path) -> None:
    judges = ["--judge", "constant:0.9", "--judge", "constant:0.2", "--judge-rule", "mean"]
    verdict = json.loads(run(bundle, *judges, "--judge-threshold", 0.6, "--json").stdout)["verdict"]
    assert (verdict["p_unsafe"], verdict["threshold"]) == (pytest.approx(0.55), 0.6)
    assert verdict["source"] == "mean(constant, constant)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "gpt"], "--judge must be one of self"),
        (["--judge", "constant:2"], "between 0 and 1"),
        (["--judge", "file:nowhere"], "nowhere cannot be read"),
        (["--judge", "endpoint:http://host"], "URL#MODEL"),
        (["--judge-threshold", "0.3"], "--judge-threshold has no effect on the judge self"),
        (["--judge", "constant:0.3", "--mode", "plain"], "acts on no verdict"),
        (["--judge", "constant:0.3", "--set", "threshold=0.9"], "pass --judge-threshold"),
        (["--judge-threshold", "0.3"], "pass --set threshold=P"),
        (["--set", "bogus=1"], "bogus is not a known key"),
        (["--policy", "fast"], "--policy must be out of"),
    ],
)
def test_what_does_not_fit_is_refused_at_start(bundle: Path, options: list[str], message: str) -> None:
    fails(run(bundle, *options), 2, message)
    fails(call("chat", bundle, "--backend", "null", *options, text=""), 2, message)


def test_the_threshold_of_self_is_a_setting(bundle: Path) -> None:
    options = ["--set", "threshold=0.9", "--json"]
    assert json.loads(run(bundle, *options).stdout)["verdict"]["threshold"] == 0.9
    both = [*options, "--judge", "self", "--judge", "constant:0.1"]
    fails(run(bundle, *both), 2, "pass --judge-threshold")


def test_a_conversation_keeps_to_its_judge(bundle: Path) -> None:
    options = ["--backend", "null", "--judge", "constant:0.9"]
    result = call("chat", bundle, *options, text=f"/mode plain\n{ASK}\n")
    assert result.exit_code == 0 and "error: judges has no effect in mode plain" in result.stderr
    assert "says constant" in result.stderr


def test_a_conversation_with_a_judge(bundle: Path, picture: Path) -> None:
    with serving(completion("unsafe"), Response(status=500)) as server:
        judge = ["--judge", f"endpoint:{server.url}#m", "--judge-timeout", 0.4]
        result = call("chat", bundle, "--backend", "null", "--image", picture, *judge, text=f"{ASK}\n{ASK}\n")
    assert result.exit_code == 0, result.output
    assert "unsafe (p_unsafe 1.00, says endpoint:m)" in result.stderr
    assert "fallback: the judge gave no verdict" in result.stderr
    assert "Sorry, I cannot help with that." in result.stdout


@pytest.mark.parametrize(
    "response",
    [
        completion(f"unsafe {KEY}"),
        completion("unsafe"),
        Response(status=401, body=KEY.encode()),
        Response(status=400, body=f'{{"error": "no such key: {KEY}"}}'.encode()),
        Response(body=f"<html>{KEY}".encode()),
        Response(status=307, headers={"Location": f"http://127.0.0.1:9/{KEY}"}),
    ],
)
def test_the_key_is_nowhere(
    response: Response, bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(response) as server:
        options = [
            *("--judge", f"endpoint:{server.url}#m", "--judge-key", "MY_KEY", "--judge-timeout", 1),
            *("--judge-cache", tmp_path / "cache", "--audit", tmp_path / "audit.jsonl", "--json"),
            *("--trace", tmp_path / "trace.jsonl"),
        ]
        result = call("--debug", "run", bundle, "--backend", "null", "--image", picture, *options, ASK)
    assert result.exit_code == 0, result.output
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    written = [path.read_text() for path in tmp_path.glob("*.jsonl")]
    written += [path.read_text() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written and KEY not in "".join([result.output, *written])


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (
            ["--mode", "plain", "--reference", "noised", "--set", "alpha=9", "--explain-refusals"],
            "no effect in mode plain: --set alpha, --reference, --explain-refusals",
        ),
        (["--mode", "plain", "--set", "fallback=error"], None),
        (["--mode", "rose", "--explain-refusals"], "no effect in mode rose: --explain-refusals"),
        (["--set", "alpha=1", "--explain-refusals"], None),
        (
            ["--judge-rule", "mean", "--judge-cache", "cache", "--judge-timeout", "3"],
            "no effect with --judge self: --judge-rule, --judge-timeout, --judge-cache",
        ),
        (["--judge", "self", "--judge", "constant:0", "--judge-rule", "mean"], None),
    ],
)
def test_options_without_effect_are_named(bundle: Path, options: list[str], note: str | None) -> None:
    result = run(bundle, *options)
    assert result.exit_code == 0, result.output
    assert [line for line in said(result.stderr) if "no effect" in line] == ([note] if note else [])


def test_refusals_are_explained_on_demand(bundle: Path, picture: Path) -> None:
    """A shift so strong that the reply refuses; the null model never ends by itself, so a stop string ends it."""
    strong = ("alpha=0", "shift=1000", "shift_steps=2", "top_k=10000")
    options = ["--image", picture, "--judge", "constant:1", "--json", "--mode", "safecode-paper"]
    options += [part for setting in strong for part in ("--set", setting)]

    def ask(*more: object) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(run(bundle, *options, "--max-new-tokens", 16, *more).stdout)
        return reply

    stop = ask()["text"].removeprefix("Sorry Sorry")[:2]
    bare, explained = ask("--stop", stop), ask("--stop", stop, "--explain-refusals")
    assert bare["explanation"] is None and bare["finish_reason"] == "stop"
    assert explained["explanation"].startswith("I see ")
    assert explained["text"] == f"{bare['text']} {explained['explanation']}"
