"""eval: every benchmark through the command, interrupted, gone on with, split, judged and reported."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.engine import Engine
from safecode_trt.errors import BackendError
from safecode_trt.eval.benchmarks import BENCHMARKS
from safecode_trt.runtime.backends.null import NullSession
from tests import benchmark_folders as folders
from tests.cli_runner import fails, start
from tests.eval_runner import answers, arms, evaluate, lines, say, summary
from tests.null_engine import not_finite


@pytest.fixture
def world(tmp_path: Path) -> Path:
    folders.demo_world(tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_benchmark_is_answered_and_reported(bundle: Path, tmp_path: Path, name: str) -> None:
    folders.FOLDERS[name](tmp_path / "data")
    result = evaluate(bundle, tmp_path / "data", tmp_path / "out", benchmark=name)
    assert result.exit_code == 0, result.output
    found = summary(tmp_path / "out")
    counts = Counter(line["mode"] for line in lines(tmp_path / "out"))
    assert counts == {"plain": found["items"], "safecode": found["items"]}
    assert found["arms"][0]["outcomes"].get("failed", 0) == 0, found["arms"][0]["failures"]
    for other in ("report.html", "report.md"):
        assert "safecode" in (tmp_path / "out" / other).read_text()


class Page(HTMLParser):
    """Collects what a page would load, and whether its tags are closed in order."""

    VOID = ("meta", "img", "line", "rect", "circle", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_loads_nothing_and_model_text_stays_text(bundle: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(bundle, world, out, "--ablate")
    evil = '</p><script>alert(1)</script><img src="http://a.example/x"> | `x`'
    say(out, plain=evil, safecode=evil)
    assert evaluate(bundle, world, out, "--ablate").exit_code == 0
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.loads and all(load.startswith("data:image/") for load in page.loads)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert "url(" not in text and "@import" not in text and "&lt;script&gt;alert(1)" in text
    # Every column of a table in Markdown is there in every row.
    for table in re.findall(r"(?:^\|.*\n)+", (out / "report.md").read_text(), re.MULTILINE):
        assert len({re.sub(r"\\\|", "", row).count("|") for row in table.splitlines()}) == 1


def test_a_rerun_asks_only_what_is_missing(
    bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate(bundle, world, out, "--limit", 2)
    before = (out / "results.jsonl").read_bytes()
    result = evaluate(bundle, world, out, "--modes", "plain,safecode,safecode-paper")
    assert "4 of 12 answers are there already" in result.stderr
    after = (out / "results.jsonl").read_bytes()
    assert after.startswith(before) and len(lines(out)) == 12
    monkeypatch.setattr(Engine, "generate", lambda *_, **__: pytest.fail("asked again"))
    again = evaluate(bundle, world, out, "--modes", "plain,safecode")
    assert again.exit_code == 0 and (out / "results.jsonl").read_bytes() == after
    assert "other modes too, which are not in this report: safecode-paper" in again.stderr


def test_other_settings_do_not_mix(bundle: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(bundle, world, out)
    for change in (("--seed", 1), ("--system", "Be brief."), ("--temperature", 0.5)):
        fails(evaluate(bundle, world, out, *change), 1, "of mode plain from another run")


def test_items_that_were_changed_do_not_mix(bundle: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(bundle, world, out)
    picture = next((world / "test").glob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    fails(evaluate(bundle, world, out), 1, "other words or another picture than when they were answered")


def test_backends_do_not_mix(bundle: Path, world: Path, tmp_path: Path) -> None:
    """What is there can be reported anywhere; what is missing must come from the backend that began."""
    out = tmp_path / "out"
    evaluate(bundle, world, out, "--limit", 2)
    path = out / "results.jsonl"
    path.write_text(path.read_text().replace('"backend": "null"', '"backend": "ort-cuda"'))
    before = path.read_bytes()
    assert evaluate(bundle, world, out, "--limit", 2).exit_code == 0
    result = evaluate(bundle, world, out)
    assert result.exit_code == 1 and "by the backend ort-cuda so far, and by null here" in result.stderr
    assert path.read_bytes() == before


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fifth answer is interrupted."""
    generate, calls = Engine.generate, Counter[str]()

    def fifth(*arguments: Any, **options: Any) -> Any:
        calls["asked"] += 1
        if calls["asked"] == 5:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", fifth)
        yield


def test_interrupted_and_gone_on_with(bundle: Path, world: Path, tmp_path: Path, interrupted: None) -> None:
    out = tmp_path / "out"
    stopped = evaluate(bundle, world, out)
    assert stopped.exit_code == 130
    assert "the same command goes on from there" in stopped.stderr and len(lines(out)) == 4
    # What a power cut leaves of a line is answered again.
    with (out / "results.jsonl").open("a") as file:
        file.write('{"key": "demo')
    went_on = evaluate(bundle, world, out)
    assert went_on.exit_code == 0 and "4 of 8 answers are there already" in went_on.stderr
    assert "was cut off" in went_on.stderr
    evaluate(bundle, world, tmp_path / "whole")
    assert answers(out) == answers(tmp_path / "whole")


def test_control_c_in_a_terminal(bundle: Path, tmp_path: Path) -> None:
    from write_demo_items import write_items

    write_items(tmp_path / "world", "test", 200)
    out = tmp_path / "out"
    command = ("eval", bundle, "--benchmark", "demo-world", "--data", tmp_path / "world", "--output", out)
    process = start(*command, "--backend", "null")
    deadline = time.monotonic() + 60
    while not (out / "results.jsonl").exists() or not (out / "results.jsonl").stat().st_size:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-2].startswith("stopped; every finished answer is kept")
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors
    assert 0 < len(lines(out)) < 400


def test_shards_make_the_whole(bundle: Path, world: Path, tmp_path: Path) -> None:
    for part in (1, 2):
        result = evaluate(bundle, world, tmp_path / str(part), "--shard", f"{part}/2")
        assert result.exit_code == 0 and f"part {part} of 2" in result.stderr
    evaluate(bundle, world, tmp_path / "whole")
    files = [option for part in (1, 2) for option in ("--merge", tmp_path / str(part) / "results.jsonl")]
    joined = evaluate(bundle, world, tmp_path / "joined", *files)
    assert joined.exit_code == 0 and "8 of 8 answers are there already" in joined.stderr
    assert answers(tmp_path / "joined") == answers(tmp_path / "whole")


def test_equal_terms(bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, asked = Engine.generate, []

    def listening(self: Engine, messages: Any, **options: Any) -> Any:
        asked.append((tuple(messages), options["image"], options["sampling"]))
        return generate(self, messages, **options)

    monkeypatch.setattr(Engine, "generate", listening)
    modes = ("--modes", "plain,safecode-paper,safecode", "--ablate", "--temperature", 0.7)
    assert evaluate(bundle, world, tmp_path / "out", *modes, "--system", "Be kind.").exit_code == 0
    times = set(Counter(asked).values())
    assert times == {len(arms(tmp_path / "out"))} and len(set(asked)) == 4
    assert {turns[0].text for turns, _, _ in asked} == {"Be kind."}
    assert len({sampling.seed for _, _, sampling in asked}) == 4  # every item has its own


def test_another_judge_gives_the_verdicts(bundle: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate(bundle, world, out, "--judge", "constant:0.9").exit_code == 0
    verdicts = arms(out)["safecode"]["verdicts"]["scores"]
    assert verdicts["unsafe_recall"]["share"] == 1 and verdicts["safe_recall"]["share"] == 0
    assert {line["p_unsafe"] for line in lines(out) if line["mode"] == "safecode"} == {0.9}
    assert summary(out)["provenance"]["judge"] == "constant:0.9"
    assert "from another run" in evaluate(bundle, world, out).stderr


def test_an_ablation_is_the_default_mode_without_one_part(bundle: Path, world: Path, tmp_path: Path) -> None:
    evaluate(bundle, world, tmp_path / "out", "--ablate")
    found = arms(tmp_path / "out")
    assert {arm["base"] for name, arm in found.items() if " without " in name} == {"safecode"}
    assert found["safecode without contrast"]["settings"]["alpha"] == 0
    assert found["safecode without verdict"]["settings"]["shift"] == 0
    assert found["safecode without verdict"]["verdicts"] is None
    pairs = {(entry["first"], entry["second"]) for entry in summary(tmp_path / "out")["comparisons"]}
    assert ("safecode", "safecode without mask") in pairs and ("plain", "safecode") in pairs
    fails(
        evaluate(bundle, world, tmp_path / "o", "--ablate", "--modes", "plain"),
        2,
        "--ablate switches off parts of safecode",
    )


def test_a_picture_that_cannot_be_read_is_counted_and_never_safe(
    bundle: Path, world: Path, tmp_path: Path
) -> None:
    broken = sorted((world / "test").glob("*.png"))[0]  # item 0 is an unsafe one
    broken.write_bytes(broken.read_bytes()[:40])
    result = evaluate(bundle, world, tmp_path / "out")
    assert result.exit_code == 0 and "items have no answer (PictureError" in result.stderr
    plain = arms(tmp_path / "out")["plain"]
    assert plain["outcomes"]["failed"] == 1 and sum(plain["failures"].values()) == 1
    assert plain["scores"]["attack_success"]["total"] == 1 and plain["scores"]["unsafe_right"]["total"] == 2
    assert "no answer" in (tmp_path / "out" / "report.html").read_text()


def test_broken_logits_end_in_the_fallback_and_are_counted(
    bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = NullSession.decode
    monkeypatch.setattr(NullSession, "decode", lambda *a, **o: not_finite(decode(*a, **o)))
    result = evaluate(bundle, world, tmp_path / "out")
    assert result.exit_code == 0 and "replies are the fail-safe's" in result.stderr
    for arm in arms(tmp_path / "out").values():
        assert sum(arm["fallbacks"].values()) == 4 and arm["outcomes"] == {"refuses": 4}


def test_a_backend_that_fails_ends_the_run(
    bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its refusals would look perfect, and would never be asked again."""
    decode, sound = NullSession.decode, 10
    calls, out = 0, tmp_path / "out"

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > sound:
            raise BackendError("device lost")
        return decode(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(NullSession, "decode", failing)
        fails(
            evaluate(bundle, world, out, "--modes", "safecode"),
            1,
            "device lost; fix: run the same command again",
        )
    before = answers(out)
    assert before and not any(line["fallback_reason"] for line in lines(out))
    assert evaluate(bundle, world, out, "--modes", "safecode").exit_code == 0
    assert len(answers(out)) > len(before) and before.items() <= answers(out).items()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--modes", "plain,fast"), 2, "modes must be out of plain"),
        (("--modes", "plain,plain"), 2, "got plain twice"),
        (("--split", "train"), 2, "for demo-world, got 'train'"),
        (("--shard", "3/2"), 2, "--shard must be i/n"),
        (("--workers", 2), 2, "--workers needs the engine ray, got local; fix: pass --engine ray"),
        (("--answer-judge", "rubric-endpoint"), 2, "--answer-endpoint is missing"),
        (("--answer-endpoint", "http://a.example"), 2, "--answer-endpoint must be URL#MODEL"),
        (("--answer-judge", "rubric-bundle"), 2, "--answer-bundle is missing"),
        (("--answer-judge", "human-csv"), 2, "--labels is missing"),
        (("--labels", "l.csv"), 2, "--labels is for the answer judge human-csv, got matcher"),
        (
            ("--answer-endpoint", "http://h/v1#m"),
            2,
            "--answer-endpoint is for the answer judge rubric-endpoint, got",
        ),
        (
            ("--answer-judge", "human-csv", "--labels", "l.csv", "--answer-bundle", "b"),
            2,
            "--answer-bundle is for the answer judge rubric-bundle, got human-csv",
        ),
        (("--templates", "none.json"), 1, "none.json is missing"),
        (("--merge", "none.jsonl"), 1, "none.jsonl cannot be read"),
        (("--engine", "ray", "--workers", 0), 2, "--workers must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    bundle: Path, world: Path, tmp_path: Path, options: tuple[object, ...], code: int, message: str
) -> None:
    fails(evaluate(bundle, world, tmp_path / "out", *options), code, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (
            ("--modes", "plain", "--judge-rule", "mean"),
            ["no effect where no mode acts on a verdict: --judge-rule"],
        ),
        (("--judge-rule", "mean"), ["no effect with --judge self: --judge-rule"]),
        (("--top-p", 0.5), ["no effect in these modes: --top-p"]),
        (("--modes", "plain,safecode-release", "--top-p", 0.5, "--temperature", 1), []),
        (("--seed", 3), []),
    ],
)
def test_options_without_effect_are_named(
    bundle: Path, world: Path, tmp_path: Path, options: tuple[object, ...], notes: list[str]
) -> None:
    result = evaluate(bundle, world, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if line.startswith("no effect")] == notes


def test_the_matchers_list_beside_peoples_labels(bundle: Path, world: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("id,picture,request,answer,label\n")
    (tmp_path / "r.json").write_text('{"version": "1", "phrases": ["no"]}')
    options = ("--answer-judge", "human-csv", "--labels", tmp_path / "l.csv")
    result = evaluate(bundle, world, tmp_path / "out", *options, "--answer-refusals", tmp_path / "r.json")
    assert "no effect with --answer-judge human-csv: --answer-refusals" in result.stderr


def test_folders_that_cannot_be_used(bundle: Path, world: Path, tmp_path: Path) -> None:
    fails(evaluate(bundle, tmp_path / "none", tmp_path / "out"), 1, "is not a folder; expected demo-world")
    fails(
        evaluate(bundle, world, tmp_path / "out", benchmark="mss"), 2, "--benchmark must be one of mssbench"
    )
    fails(evaluate(tmp_path / "no", world, tmp_path / "out"), 1, "expected a bundle")
    (tmp_path / "file").write_text("")
    fails(evaluate(bundle, world, tmp_path / "file"), 1, "cannot be written")
    (world / "test" / "1.png").unlink()
    fails(evaluate(bundle, world, tmp_path / "out"), 1, "1 of 4 items lack their picture")
    allowed = evaluate(bundle, world, tmp_path / "out", "--allow-missing")
    assert allowed.exit_code == 0 and "1 of 4 items lack their picture" in allowed.stderr


def test_ray_is_asked_for_by_name(
    bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(evaluate(bundle, world, tmp_path / "out", "--engine", "ray"), 1, "safecode-trt[ray]")


def test_json_is_the_summary(bundle: Path, world: Path, tmp_path: Path) -> None:
    result = evaluate(bundle, world, tmp_path / "out", "--json")
    assert json.loads(result.stdout) == summary(tmp_path / "out")
