"""The trace and the audit log: what is written can be read, what is broken is named, pictures are kept on request."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models

from safecode_trt.cli.explain import _find
from safecode_trt.config import MODES
from safecode_trt.errors import ConfigError, TraceError
from safecode_trt.runtime.picture_file import PictureStore, read_picture
from safecode_trt.trace.reading import step_reading
from safecode_trt.trace.record_file import BadLine, RecordFile, read_records
from safecode_trt.trace.reply_record import ReplyRecord, token_text
from tests.cli_runner import ASK, ROOT, call, fails
from tests.null_bundle import write_null_bundle
from tests.recorded import RECORD, SAFE, record, step

TEXT = st.text(max_size=8)
ROWS = st.lists(
    st.tuples(
        TEXT,
        st.floats(-99, 99),
        st.none() | st.floats(-99, 99),
        st.floats(-99, 99),
        st.floats(-9, 9),
    ),
    min_size=1,
    max_size=8,
)
RECORDS = st.builds(
    lambda rows, text, verdict: record(*map(step, rows), text=text, verdict=verdict),
    st.lists(ROWS, max_size=3),
    TEXT,
    st.sampled_from([None, SAFE]),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    write(path, RECORD, RECORD)
    return path


def write(path: Path, *records: ReplyRecord) -> None:
    file = RecordFile(path, steps=True)
    for each in records:
        file.write(each)
    file.close()


def run(bundle: Path, *arguments: object) -> Result:
    return call("run", bundle, "--backend", "null", "--max-new-tokens", 6, *arguments, ASK)


@given(records=st.lists(RECORDS, min_size=1, max_size=3))
def test_what_is_written_is_read(
    records: list[ReplyRecord], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    write(path, *records)
    assert list(read_records(path)) == records
    assert path.read_bytes().count(b"\n") == len(records)


def test_surrogates_in_a_reply_are_written(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", record(text="a\udce9b"))
    assert isinstance(next(read_records(tmp_path / "t.jsonl")), ReplyRecord)


def test_what_replaces_a_modes_own_is_recorded(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert run(bundle, "--policy", "shift", "--set", "shift=7", "--trace", path).exit_code == 0
    (made,) = read_records(path)
    assert isinstance(made, ReplyRecord)
    assert made.settings["stages"] == ["shift"] and made.settings["shift"] == 7.0


@pytest.mark.parametrize("mode", MODES)
def test_run_writes_trace_and_audit_in_one_form(
    bundle: Path, picture: Path, tmp_path: Path, mode: str
) -> None:
    files = tmp_path / "trace.jsonl", tmp_path / "audit.jsonl"
    for _ in range(2):
        options = ("--image", picture, "--mode", mode, "--seed", 3, "--trace", files[0], "--audit", files[1])
        result = run(bundle, *options)
        assert result.exit_code == 0, result.output
    (traced, _), (audited, _) = (list(read_records(path)) for path in files)
    assert isinstance(traced, ReplyRecord) and isinstance(audited, ReplyRecord)
    assert (
        traced.backend == "null"
        and traced.mode == mode
        and traced.sampling.seed == 3
        and traced.messages[0].text == ASK
    )
    assert traced.image_sha256 == (hashlib.sha256(picture.read_bytes()).hexdigest(),)
    assert ("alpha" in traced.settings) == (mode != "plain") and (mode != "plain" or not traced.steps)
    assert audited.steps == () and {**audited.to_dict(), "steps": 0} == {**traced.to_dict(), "steps": 0}
    for each in traced.steps:
        assert each.step >= len(traced.tokens) or each.chosen == traced.tokens[each.step]
        finals = [-math.inf if c.final is None else c.final for c in each.candidates]
        assert finals == sorted(finals, reverse=True)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


@pytest.mark.parametrize(("temperature", "recorded"), [(0, True), (1000, False)])
def test_the_end_of_turn_is_a_choice_too(
    bundle: Path, tmp_path: Path, temperature: float, recorded: bool
) -> None:
    """It is no part of the reply, but of the step: found among the candidates, or null where it was drawn from afar."""
    options = ("--mode", "safecode-paper", "--temperature", temperature, "--trace")
    assert run(bundle, *options, tmp_path / "long.jsonl").exit_code == 0
    (long,) = read_records(tmp_path / "long.jsonl")
    assert isinstance(long, ReplyRecord)
    ids = [token.id for token in long.tokens[:5]]
    last = next(place for place in (1, 2, 3, 4) if ids[place] not in ids[:place])
    described = json.loads((bundle / "bundle.json").read_text())
    described["special_tokens"]["eos_token_ids"] = [ids[last]]
    (bundle / "bundle.json").write_text(json.dumps(described))
    assert run(bundle, *options, tmp_path / "short.jsonl").exit_code == 0
    (short,) = read_records(tmp_path / "short.jsonl")
    assert isinstance(short, ReplyRecord) and short.finish_reason == "stop"
    assert short.tokens == long.tokens[:last] and [each.step for each in short.steps] == [*range(last + 1)]
    chosen = [each.chosen for each in short.steps]
    assert chosen == [*short.tokens, long.tokens[last] if recorded else None]
    said = step_reading(short.steps[-1], short.verdict)
    assert ("the end of the reply, which is not among the recorded tokens" in said) is not recorded


def test_tokens_keep_their_leading_space() -> None:
    tokenizer = Tokenizer(models.Unigram([("\u2581Sorry", 0.0), ("ing", 0.0)], unk_id=None))
    tokenizer.decoder = decoders.Metaspace()
    assert [token_text(tokenizer, id) for id in (0, 1)] == [" Sorry", "ing"]


def test_the_schema_is_documented() -> None:
    text = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    assert f"`schema_version` | {RECORD.schema_version}" in text
    missing = [field.name for field in fields(ReplyRecord) if f"`{field.name}`" not in text]
    parts = (RECORD.steps[0], RECORD.steps[0].candidates[0], RECORD.timings, RECORD.verdict, RECORD.sampling)
    missing += [field.name for part in parts for field in fields(part) if f"`{field.name}`" not in text]  # type: ignore[arg-type]
    assert not missing


def broken(change: dict[str, Any]) -> bytes:
    return json.dumps({**RECORD.to_dict(), **change}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"schema_version": 4, "time": "20', "is cut off"),
        (b"hello", "is not valid JSON"),
        (b"\x89PNG\xff", "is not UTF-8 text"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "is no reply; expected version 4 of docs/trace.md"),
        (b'{"a": 1}', "is no reply; expected version 4"),
        (broken({"schema_version": 1}), "has schema version 1; expected version 4"),
        (broken({"extra": 1}), "reply: extra is not a known key"),
        (broken({"prompt_tokens": "x"}), "reply: prompt_tokens must be an integer, got 'x'"),
        (broken({"finish_reason": "boredom"}), "reply: finish_reason must be one of"),
        (broken({"sampling": {"temperature": -1}}), "temperature must be"),
        (
            json.dumps({**RECORD.to_dict(), "verdict": {"p_unsafe": float("nan")}}).encode(),
            "is not valid JSON",
        ),
    ],
)
def test_a_line_that_is_no_record_is_named_and_the_rest_is_read(
    trace: Path, line: bytes, reason: str
) -> None:
    good = trace.read_bytes().splitlines()[0]
    trace.write_bytes(good + b"\n" + line + b"\n\n" + good)
    first, bad, last = read_records(trace)
    assert first == last == RECORD
    assert isinstance(bad, BadLine) and bad.number == 2 and reason in bad.reason


def test_writing_goes_on_behind_a_cut_line(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-50])
    write(trace, RECORD)
    first, bad, last = read_records(trace)
    assert first == last == RECORD and isinstance(bad, BadLine) and bad.reason == "is cut off"


@pytest.mark.parametrize("option", ["--trace", "--audit"])
def test_other_files_are_not_written_to(bundle: Path, picture: Path, option: str, tmp_path: Path) -> None:
    before = picture.read_bytes()
    fails(run(bundle, option, picture), 1, "is neither trace nor audit log; fix: choose another file")
    assert picture.read_bytes() == before
    fails(run(bundle, option, tmp_path), 1, "cannot be written: Is a directory")
    fails(run(bundle, option, tmp_path / "no" / "t.jsonl"), 1, "t.jsonl cannot be written: No such file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_an_error() -> None:
    file = RecordFile(Path("/dev/full"), steps=True)
    with pytest.raises(TraceError, match="cannot be written: No space left"):
        file.write(RECORD)
    file.close()


def test_options_that_contradict(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    fails(run(bundle, "--store-images", tmp_path), 2, "--store-images needs a file whose lines")
    fails(
        run(bundle, "--trace", path, "--audit", path), 2, "--trace must be another file than that of --audit"
    )


def test_pictures_are_stored_on_request_only(bundle: Path, picture: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "deep" / "kept", tmp_path / "audit.jsonl"
    assert run(bundle, "--image", picture, "--audit", log).exit_code == 0
    assert not folder.exists()
    for _ in range(2):
        result = run(bundle, "--image", picture, "--audit", log, "--store-images", folder)
        assert result.exit_code == 0, result.output
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == picture.read_bytes() and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.name in json.loads(log.read_text().splitlines()[-1])["image_sha256"]


def test_a_stored_picture_is_never_overwritten(picture: Path, tmp_path: Path) -> None:
    store, read = PictureStore(tmp_path / "kept"), read_picture(picture)
    place = store.keep(read)
    place.write_bytes(b"somebody's")
    assert store.keep(read) == place and place.read_bytes() == b"somebody's"


def test_a_store_that_fails_leaves_nothing(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = PictureStore(tmp_path / "kept"), read_picture(picture)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot be stored in .*: No space left on device"):
        store.keep(read)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_store_that_is_no_folder(bundle: Path, picture: Path, tmp_path: Path) -> None:
    options = ("--audit", tmp_path / "a.jsonl", "--store-images", picture)
    fails(run(bundle, *options), 2, "pictures cannot be stored in")


def test_a_picture_is_read_once(picture: Path) -> None:
    """A camera may replace the file at any time: what is decoded, hashed and kept must be the same bytes."""
    read = read_picture(picture)
    Image.new("RGB", (10, 10)).save(picture)
    assert read.sha256 == hashlib.sha256(read.data).hexdigest() and read.image.size == (40, 30)


def test_counting_replies(trace: Path) -> None:
    assert _find(trace, None)[1:] == (2, 2) and _find(trace, 1)[1:] == (1, 2)
