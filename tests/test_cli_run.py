"""run: the answer on stdout, the talk on stderr, mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from safecode_trt.bundle import Bundle
from safecode_trt.cli.options import MADE_UP
from safecode_trt.config import MODES
from safecode_trt.engine import Engine
from safecode_trt.runtime import Chunk
from tests.cli_runner import ASK, call, fails, said, start
from tests.null_bundle import write_null_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle", capacity=256)


def run(bundle: Path, *arguments: object, text: str | bytes | None = None) -> Result:
    return call("run", bundle, "--backend", "null", "--max-new-tokens", 6, *arguments, text=text)


@pytest.mark.parametrize("mode", MODES)
def test_run_answers_on_stdout_and_talks_on_stderr(bundle: Path, picture: Path, mode: str) -> None:
    result = run(bundle, "--image", picture, "--mode", mode, ASK)
    assert result.exit_code == 0, result.output
    settled = "nothing decoded" in result.stderr
    assert result.stdout.endswith("\n") and ("tokens, first after" in result.stderr) != settled
    assert ("p_unsafe" in result.stderr) == mode.startswith(("safecode", "verdict"))


def test_the_summary_counts_what_there_is(bundle: Path) -> None:
    one = run(bundle, "--mode", "plain", "--max-new-tokens", 1, ASK).stderr
    assert "1 token, first after" in one and "then" not in one
    none = run(bundle, "--deadline", 0, ASK).stderr
    assert "fallback: the deadline" in none and "tokens" not in none and "first" not in none


def test_quiet_leaves_the_answer_only(bundle: Path, picture: Path) -> None:
    result = call("--quiet", "run", bundle, "--backend", "null", "--image", picture, ASK)
    assert result.exit_code == 0 and result.stderr == ""


def test_made_up_numbers_are_called_that(bundle: Path, picture: Path) -> None:
    assert run(bundle, "--image", picture, ASK).stderr.splitlines()[0] == MADE_UP
    assert "made-up numbers, for dry runs" in " ".join(call("run", "--help").stdout.split())


def test_json_is_what_the_trace_holds(bundle: Path, picture: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    answer = json.loads(run(bundle, "--image", picture, "--json", "--trace", trace, ASK).stdout)
    assert answer == json.loads(trace.read_text())
    assert answer["messages"] == [{"role": "user", "text": ASK, "images": 1}]
    assert answer["mode"] == "safecode" and 0 <= answer["verdict"]["p_unsafe"] <= 1
    assert run(bundle, "--image", picture, ASK).stdout == answer["text"] + "\n"


@pytest.mark.parametrize("reference", ["noised", "cached", "absent"])
def test_the_reference_may_be_chosen(bundle: Path, picture: Path, reference: str) -> None:
    assert run(bundle, "--image", picture, "--reference", reference, ASK).exit_code == 0


def test_a_setting_is_an_ablation(bundle: Path, picture: Path) -> None:
    def answer(*arguments: object) -> dict[str, object]:
        result = run(bundle, "--image", picture, "--json", *arguments, ASK)
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    plain = answer("--mode", "plain")
    off = answer("--set", "alpha=0", "--set", "shift=0")
    assert (off["tokens"], off["verdict"], off["noise"]) == (plain["tokens"], None, None)
    assert answer("--set", "shift=0")["verdict"] is None
    assert answer("--set", "reference=noised", "--set", "sigma=0.5")["noise"] == {"sigma": 0.5}
    assert answer("--mode", "vcd", "--set", "noise_step=999")["noise"] == {"step": 999}
    assert answer("--policy", "gate", "--set", "threshold=0")["finish_reason"] == "settled"
    assert answer("--policy", "contrast, reverse")["verdict"] is None
    band = answer("--set", "abstain=[0,1]")["verdict"]
    assert isinstance(band, dict) and band["abstained"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "alpha"], "--set: expected KEY=VALUE, got 'alpha'"),
        (["--set", "colour=1"], "--set: colour is not a known key; known keys: abstain, alpha"),
        (["--set", "alpha=loud"], "--set: alpha must be a number, got 'loud'"),
        (["--set", "alpha=-1"], "--set: alpha must be a number of at least 0, got -1"),
        (["--set", "alpha=NaN"], "--set: alpha must be a number of at least 0, got nan"),
        (["--set", "threshold=7"], "error: --set: threshold must be between 0 and 1"),
        (["--set", "release.fast=1"], "release.fast is not a known key"),
        (["--set", "beta.x=1"], "'beta' has no settings inside it"),
        (["--policy", "shift,fast"], "--policy must be out of contrast, shift"),
        (["--policy", "shift,shift"], "must name each stage once, got 'shift' twice"),
        (["--policy", "verdict-text,principle"], "different things by the prompt 'request'"),
        (["--prompts", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--refusals", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_mistakes_in_the_policy_are_named(bundle: Path, arguments: list[str], message: str) -> None:
    fails(run(bundle, *arguments, ASK), 2, message)


def test_prompts_and_refusals_from_files(bundle: Path, picture: Path, tmp_path: Path) -> None:
    prompts, refusals = tmp_path / "prompts.json", tmp_path / "refusals.txt"
    refusals.write_text(" Sorry\n I cannot\n")

    def tokens(*arguments: object) -> int:
        result = run(bundle, "--image", picture, "--json", *arguments, ASK)
        assert result.exit_code == 0, result.output
        return int(json.loads(result.stdout)["prompt_tokens"])

    lengths = []
    for principle in ("Be kind.", "Be kind to everybody in the picture."):
        prompts.write_text(json.dumps({"principle": principle}))
        lengths.append(tokens("--mode", "coca", "--prompts", prompts))
    assert lengths[0] < lengths[1]
    assert tokens("--refusals", refusals, "--mode", "safecode-release")
    for content, message in (('{"reversed": "x"}', "reversed is not a known key"), ("[", "not valid JSON")):
        prompts.write_text(content)
        fails(run(bundle, "--prompts", prompts, ASK), 2, message)


def test_the_same_seed_gives_the_same_bytes(bundle: Path, picture: Path) -> None:
    def draw(seed: int) -> str:
        return run(bundle, "--image", picture, "--temperature", 5, "--seed", seed, ASK).stdout

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_the_prompt_comes_from_stdin(bundle: Path, picture: Path) -> None:
    answer = json.loads(run(bundle, "--image", picture, "--json", "-", text=f"{ASK}\n").stdout)
    assert answer["messages"][0]["text"] == ASK


def test_stdin_that_is_not_utf8(bundle: Path) -> None:
    fails(run(bundle, "-", text=b"caf\xe9"), 1, "stdin is not UTF-8 (byte 3)")


def test_an_argument_that_is_not_utf8(bundle: Path) -> None:
    fails(run(bundle, "caf\udce9"), 1, "the prompt is not UTF-8")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(bundle: Path, picture: Path, prompt: str) -> None:
    fails(run(bundle, "--image", picture, prompt), 1, "the request is empty")


def test_an_enormous_prompt(bundle: Path, picture: Path) -> None:
    fails(run(bundle, "--image", picture, "-", text="water " * 300), 1, "positions")
    fails(run(bundle, "--image", picture, "-", text="x" * (1 << 21)), 1, "characters")


def test_a_picture_that_is_missing_or_none(bundle: Path, tmp_path: Path) -> None:
    fails(run(bundle, "--image", tmp_path / "nowhere.png", ASK), 1, "nowhere.png")
    (tmp_path / "text.png").write_text("not a picture")
    fails(run(bundle, "--image", tmp_path / "text.png", ASK), 1, "text.png")
    fails(run(bundle, "--image", tmp_path, ASK), 1, str(tmp_path))


def test_ctrl_c_in_a_reply(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*arguments: object, **options: object) -> Iterator[Chunk]:
        yield Chunk(text="half an")
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", stream)
    result = run(bundle, "--audit", tmp_path / "audit.jsonl", ASK)
    assert result.exit_code == 130 and result.stdout == "half an"
    assert said(result.stderr) == ["interrupted"]
    result = call("chat", bundle, "--backend", "null", text=f"{ASK}\n/quit\n")
    assert result.exit_code == 0 and "the turn is forgotten" in result.stderr


def test_pictures_of_one_request_keep_their_order(bundle: Path, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 40), (0, 0, 250)).save(other)

    def hashes(*paths: Path) -> list[str]:
        images = [part for path in paths for part in ("--image", path)]
        return json.loads(run(bundle, *images, "--json", ASK).stdout)["image_sha256"]

    assert hashes(picture, other) == hashes(other, picture)[::-1] != hashes(other, picture)
    fails(
        run(bundle, "--image", picture, "--image", tmp_path / "none.png", ASK), 1, "none.png does not exist"
    )


def test_no_colour_when_not_wanted(bundle: Path) -> None:
    process = start("inspect", bundle)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "\x1b" not in output


def test_run_on_onnx_runtime(tiny_bundle: Bundle, picture: Path) -> None:
    for mode in MODES:
        result = call(
            "run", tiny_bundle.path, "--image", picture, "--mode", mode, "--max-new-tokens", 4, "--json", ASK
        )
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["mode"] == mode and answer["finish_reason"] in ("stop", "length")
