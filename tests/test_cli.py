"""The command line from outside: help, exit codes, one-line errors, and what goes to which stream."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import safecode_trt
from safecode_trt.bundle import Bundle
from safecode_trt.cli import VERBS, console, probe, program
from safecode_trt.config import MODES
from safecode_trt.contract import ATTENTION_FORMS, AttentionForm
from safecode_trt.errors import BundleError
from safecode_trt.manifest import BUNDLE_JSON
from safecode_trt.runtime import Chunk, Engine
from tests.null_bundle import DEMO, write_null_bundle

ROOT = Path(__file__).parents[1]
PROBED: dict[AttentionForm, set[str]] = {
    "portable": {"TensorScatter", "Attention"},
    "decomposed": {"MatMul", "Softmax"},
}
ASK = "can i pour water on it?"


def call(*arguments: object, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(program, list(map(str, arguments)), input=text)


def fails(result: Result, code: int, message: str) -> None:
    """One line on stderr that says what is wrong, and nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line, line


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    command = [sys.executable, "-c", "from safecode_trt.cli import main; main()", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("cli") / "bundle")


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


# ---- the program


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_and_shows_an_example(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0 and result.stderr == ""
    assert f"safecode-trt {verb}" in result.stdout.split("Example:")[1].split("Options:")[0]
    text = [line for line in result.stdout.splitlines() if not line.startswith("    ")]
    assert max(map(len, text)) <= 80


def test_the_program_lists_its_verbs_in_order_of_use() -> None:
    lines = call("--help").stdout.split("Commands:")[1].split()
    assert [word for word in lines if word in VERBS and word.islower()][: len(VERBS)]
    assert call("-h").stdout == call("--help").stdout


def test_every_verb_is_a_file() -> None:
    files = {path.stem for path in (ROOT / "safecode_trt" / "cli").glob("*.py")}
    assert set(VERBS) <= files
    assert files - set(VERBS) == {"__init__", "console", "options", "probe", "trace"} | (
        files & {"demo_report"}
    )


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
        (["--fly"], "No such option"),
        (["run"], "Missing argument 'BUNDLE'"),
        (["run", "x"], "Missing argument 'PROMPT'"),
        (["run", "x", "y", "--mode", "vcd"], "'vcd' is not one of 'plain', 'safecode-paper', 'safecode'"),
        (["run", "x", "y", "--seed", "one"], "'one' is not a valid integer"),
        (["run", "x", "y", "--top-p", "3"], "top_p must be between 0 and 1, got 3.0"),
        (["run", "x", "y", "--threads", "-1"], "threads must be 0 (all cores) or more, got -1"),
        (["run", "x", "y", "--stop", ""], "stop must be a list of non-empty strings"),
        (["export", "--model", "x"], "Missing option '--output'"),
        (["export", "--model", "x", "--output", "y", "--precision", "int2"], "'int2' is not one of"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    fails(call(*arguments), 2, message)


@pytest.mark.parametrize("verb", ["run", "chat", "verify", "inspect"])
def test_a_wrong_path_is_one_line(verb: str, tmp_path: Path) -> None:
    arguments = [verb, tmp_path / "nowhere", *(["hello"] if verb == "run" else [])]
    fails(call(*arguments), 1, "is not a folder; expected a bundle made by `safecode-trt export`")


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


# ---- verify, inspect, doctor


def test_verify_says_what_it_checked(bundle: Path) -> None:
    result = call("verify", bundle)
    assert result.exit_code == 0 and "files as they were written" in result.stdout
    assert json.loads(call("verify", bundle, "--json").stdout)["parity"] is None


def test_verify_finds_a_changed_byte(bundle: Path) -> None:
    data = bytearray((bundle / "tokenizer.json").read_bytes())
    data[99] ^= 1
    (bundle / "tokenizer.json").write_bytes(data)
    fails(call("verify", bundle), 1, "tokenizer.json: expected SHA-256")
    fails(call("run", bundle, "hello", "--backend", "null"), 1, "tokenizer.json: expected SHA-256")


def test_a_hostile_manifest_is_one_line(bundle: Path) -> None:
    manifest = json.loads((bundle / BUNDLE_JSON).read_text())
    manifest["files"]["../\x1b[2J\nx"] = {"bytes": 1, "sha256": ""}
    (bundle / BUNDLE_JSON).write_text(json.dumps(manifest))
    result = call("inspect", bundle)
    fails(result, 1, "must be relative and stay inside the bundle")
    assert "\x1b" not in result.stderr


def test_inspect_shows_files_graphs_and_settings(bundle: Path) -> None:
    result = call("inspect", bundle)
    assert result.exit_code == 0
    for word in (
        "tokenizer.json",
        "decoder.onnx",
        "past_key_values.*.key",
        "idefics3",
        "alpha 1.0",
        "parity:",
    ):
        assert word in result.stdout
    document = json.loads(call("inspect", bundle, "--json").stdout)
    assert document["model_type"] == "idefics3" and document["files"]


def test_doctor_executes_the_probe() -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {check["state"] for check in checks.values()} <= {"ok", "warn"}
    assert "executed a decomposed attention" in checks["onnxruntime"]["detail"]
    assert "executed a portable attention" in checks["opset 24"]["detail"]
    assert checks["memory"]["detail"].endswith("cores")


def test_doctor_reports_a_broken_bundle_among_the_rest(tmp_path: Path) -> None:
    result = call("doctor", tmp_path)
    assert result.exit_code == 1 and "fail  bundle" in result.stdout
    assert result.stderr == "error: this machine is not ready; see the lines marked fail\n"


def test_doctor_notices_wrong_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    right = probe.expected()
    monkeypatch.setattr(probe, "expected", lambda: right + 1)
    result = call("doctor")
    assert result.exit_code == 1 and "fail  onnxruntime" in result.stdout and "wrongly" in result.stdout


def test_doctor_without_opset_24_still_allows_the_decomposed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    graph_bytes = probe.graph_bytes
    monkeypatch.setattr(probe, "graph_bytes", lambda form: b"x" if form == "portable" else graph_bytes(form))
    result = call("doctor")
    assert result.exit_code == 0 and "warn  opset 24" in result.stdout


@pytest.mark.parametrize("form", ATTENTION_FORMS)
def test_the_probe_is_a_valid_model(form: AttentionForm) -> None:
    model = onnx.load_from_string(probe.graph_bytes(form))
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} >= PROBED[form]
    assert [given.name for given in model.graph.input] == list(probe.feeds(form))


# ---- run and chat, on the backend without a model


def run(bundle: Path, *arguments: object, text: str | bytes | None = None) -> Result:
    return call("run", bundle, "--backend", "null", "--max-new-tokens", 6, *arguments, text=text)


@pytest.mark.parametrize("mode", ["plain", "safecode-paper", "safecode"])
def test_run_answers_on_stdout_and_talks_on_stderr(bundle: Path, picture: Path, mode: str) -> None:
    result = run(bundle, "--image", picture, "--mode", mode, ASK)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\n") and "tokens, first after" in result.stderr
    assert ("p_unsafe" in result.stderr) == (mode != "plain")


def test_quiet_leaves_the_answer_only(bundle: Path, picture: Path) -> None:
    result = call("--quiet", "run", bundle, "--backend", "null", "--image", picture, ASK)
    assert result.exit_code == 0 and result.stderr == ""


def test_json_holds_the_whole_reply(bundle: Path, picture: Path) -> None:
    result = run(bundle, "--image", picture, "--json", ASK)
    answer = json.loads(result.stdout)
    assert answer["prompt"] == ASK and answer["mode"] == "safecode" and len(answer["image_sha256"]) == 64
    assert 0 <= answer["verdict"]["p_unsafe"] <= 1 and answer["seed"] == 0 and "trace" not in answer
    plain = run(bundle, "--image", picture, ASK)
    assert plain.stdout == answer["text"] + "\n"
    traced = json.loads(run(bundle, "--image", picture, "--json", "--trace", ASK).stdout)
    assert traced["trace"][0]["candidates"] and traced["text"] == answer["text"]


def test_trace_prints_a_table_for_each_steered_step(bundle: Path, picture: Path) -> None:
    result = run(bundle, "--image", picture, "--trace", "--mode", "safecode-paper", ASK)
    assert result.exit_code == 0, result.output
    assert "step 1" in result.stderr and "contrast" in result.stderr and "step" not in result.stdout


@pytest.mark.parametrize("reference", ["noised", "cached"])
def test_the_reference_may_be_chosen(bundle: Path, picture: Path, reference: str) -> None:
    assert run(bundle, "--image", picture, "--reference", reference, ASK).exit_code == 0


def test_the_same_seed_gives_the_same_bytes(bundle: Path, picture: Path) -> None:
    def draw(seed: int) -> str:
        return run(bundle, "--image", picture, "--temperature", 5, "--seed", seed, ASK).stdout

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_the_prompt_comes_from_stdin(bundle: Path, picture: Path) -> None:
    answer = json.loads(run(bundle, "--image", picture, "--json", "-", text=f"{ASK}\n").stdout)
    assert answer["prompt"] == ASK


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
    assert result.stderr.split() == ["interrupted"]
    result = call("chat", bundle, "--backend", "null", text=f"{ASK}\n/quit\n")
    assert result.exit_code == 0 and "the turn is forgotten" in result.stderr


def test_the_audit_log_grows_by_a_line(bundle: Path, picture: Path, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    for _ in range(2):
        assert run(bundle, "--image", picture, "--audit", log, ASK).exit_code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["prompt"] == ASK and lines[0]["mode"] == "safecode"
    assert len(lines[0]["image_sha256"]) == 64


def test_an_audit_log_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    result = run(bundle, "--audit", tmp_path / "no" / "audit.jsonl", ASK)
    assert result.exit_code in (1, 2) and "audit.jsonl cannot be written" in result.stderr
    assert result.stdout == ""


def test_chat_keeps_the_conversation(bundle: Path, picture: Path) -> None:
    lines = f"{ASK}\n\n/mode plain\nand now?\n/new\n{ASK}\n/quit\nnever\n"
    result = call("chat", bundle, "--backend", "null", "--max-new-tokens", 3, "--image", picture, text=lines)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 3 and result.stderr.count("tokens, first") == 3
    assert result.stderr.count("p_unsafe") == 1


def test_chat_explains_and_goes_on(bundle: Path, picture: Path) -> None:
    lines = f"/help\n/mode fast\n/image nowhere.png\n/image {picture}\n{ASK}\n{'water ' * 300}\n"
    result = call("chat", bundle, "--backend", "null", "--max-new-tokens", 3, text=lines)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("/quit") == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and "nowhere.png is not a file" in errors[0] and "positions" in errors[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are different there")
def test_ctrl_c_leaves_chat(bundle: Path) -> None:
    process = start("chat", bundle, "--backend", "null", stdin=subprocess.PIPE)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.split() == ["interrupted"]


def test_no_colour_when_not_wanted(bundle: Path) -> None:
    process = start("inspect", bundle)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "\x1b" not in output


# ---- with a model


def test_run_on_onnx_runtime(tiny_bundle: Bundle, picture: Path) -> None:
    for mode in MODES:
        result = call(
            "run", tiny_bundle.path, "--image", picture, "--mode", mode, "--max-new-tokens", 4, "--json", ASK
        )
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["mode"] == mode and answer["finish_reason"] in ("stop", "length")


def test_doctor_asks_the_bundle_for_a_token(tiny_bundle: Bundle) -> None:
    result = call("doctor", tiny_bundle.path)
    assert result.exit_code == 0 and "answered one token" in result.stdout


def test_verify_against_the_checkpoint(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    result = call("verify", tiny_bundle.path, "--against", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert "greedy tokens 100.0%" in result.stdout


def test_verify_against_another_checkpoint(tiny_bundle: Bundle) -> None:
    fails(call("verify", tiny_bundle.path, "--against", DEMO), 1, "was made of a checkpoint with SHA-256")


# ---- export


def export(output: Path, model: Path = DEMO) -> Result:
    return call("export", "--model", model, "--output", output)


def test_export_of_nothing(tmp_path: Path) -> None:
    fails(export(tmp_path / "out", tmp_path / "nowhere"), 1, "nowhere")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "missing", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"]
)
def test_export_of_half_a_checkpoint(tmp_path: Path, missing: str) -> None:
    shutil.copytree(DEMO, tmp_path / "half", ignore=shutil.ignore_patterns(missing))
    fails(export(tmp_path / "out", tmp_path / "half"), 1, missing.split(".")[0])
    assert os.listdir(tmp_path) == ["half"]


def test_export_over_what_is_there(bundle: Path) -> None:
    before = sorted(bundle.rglob("*"))
    fails(export(bundle), 1, "exists; pass --overwrite to replace it")
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "could not be written: No space left on device",
        ),
        (MemoryError(), 1, "MemoryError"),
    ],
)
@pytest.mark.parametrize("step", ["decoder.write_decoder", "embeddings.write_embeddings"])
def test_a_broken_off_export_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    message: str,
    step: str,
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(f"safecode_trt.export.{step}", broken)
    result = export(tmp_path / "out")
    assert result.exit_code == code and message in result.stderr and result.stdout == ""
    assert len(result.stderr.split("\n")) <= 3 and os.listdir(tmp_path) == []


def test_export_onto_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    fails(export(tmp_path / "out"), 1, "cannot be written: Read-only file system")


def test_text_cannot_command_the_terminal() -> None:
    assert console.printable("a\x1b[2Jb\x07\x9b\r\n\tc") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\n\tc"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2**33, "8.6 GB")])
def test_sizes_for_people(count: int, text: str) -> None:
    assert console.size(count) == text
