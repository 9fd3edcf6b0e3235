"""explain: what it says about a reply, on the terminal and as a picture, and about files that hold none."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safecode_trt.trace.reading import ranked, reading, shown_text, step_reading
from safecode_trt.trace.record_file import RecordFile
from safecode_trt.trace.reply_record import RecordedStep, ReplyRecord
from tests.cli_runner import call, fails, start
from tests.recorded import RAISED, RECORD, SAFE, UNSAFE, Row, record, step

KEPT = step([(" Sure", 3.0, 2.5, 3.5, 0.0), (" Sorry", 1.0, 2.0, 1.5, 0.0)])
LOWERED = step([(" Sure", 3.0, None, 3.0, 0.0), (" Sorry", 5.0, None, 5.0, -4.0)])
CONTRASTED = step([(" No", 2.0, 0.0, 4.0, 0.0), (" Sure", 3.0, 3.0, 3.0, 0.0)])
BOTH = step([(" No", 2.0, 0.0, 4.0, 3.0), (" Sure", 3.0, 3.0, 3.0, 0.0)])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", RECORD, record(KEPT, text="Sure."))


def write(path: Path, *records: ReplyRecord) -> Path:
    file = RecordFile(path, steps=True)
    for each in records:
        file.write(each)
    file.close()
    return path


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (RAISED, 'the verdict (p_unsafe 0.97) raised " Sorry" from rank 3 to 1'),
        (CONTRASTED, 'the contrast raised " No" from rank 2 to 1'),
        (
            BOTH,
            'the contrast raised " No" from rank 2 to 1, then the verdict (p_unsafe 0.97) moved it by +3.00',
        ),
        (KEPT, '" Sure" led on the picture alone, and no stage changed that'),
        (
            step([(" a", 2.0, None, 2.0, 0.0), (" b", 1.0, None, 1.0, 0.0)], chosen=1),
            'the draw took " b", of rank 2',
        ),
        (step([], chosen=None), "no candidate was recorded"),
    ],
)
def test_a_step_in_words(seen: RecordedStep, sentence: str) -> None:
    assert step_reading(seen, UNSAFE) == sentence


def test_a_refusal_that_is_lowered() -> None:
    sentence = 'the verdict (p_unsafe 0.02) lowered " Sorry" from rank 1 to 2, so " Sure" led'
    assert step_reading(LOWERED, SAFE) == sentence


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (RECORD, 'step 1: the verdict (p_unsafe 0.97) raised " Sorry" from rank 3 to 1'),
        (record(KEPT, KEPT), "no stage changed that; nor did any stage in the step after it"),
        (record(KEPT, RAISED), 'step 2: the verdict (p_unsafe 0.97) raised " Sorry"'),
        (record(RAISED, KEPT), "in no other step did a stage change which token led"),
        (record(RAISED, RAISED, KEPT), "another token came to lead in 2 of 3 steps"),
        (record(mode="plain"), "no step was steered"),
        (record(), "no steered step was recorded"),
        (record(finish_reason="settled"), "the verdict (p_unsafe 0.97) settled the answer"),
        (record(finish_reason="fallback", fallback_reason="NaN"), "the fallback answered, because NaN"),
        (record(fallback_reason="NaN"), "decoding went on plainly, because NaN"),
        (
            record(fallback_reason="late", finish_reason="deadline"),
            "the reply was cut before its steering was through, because late",
        ),
    ],
)
def test_a_reply_in_words(made: ReplyRecord, sentence: str) -> None:
    assert sentence in reading(made)


ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(
        st.text(max_size=6),
        st.integers(-9, 9).map(float),
        st.none() | st.integers(-9, 9).map(float),
        st.integers(-9, 9).map(float),
        st.sampled_from([0.0, 2.0, -2.0]),
    ),
    max_size=8,
)


@given(rows=ROWS)
def test_ranks_follow_the_logits(rows: list[Row]) -> None:
    seen = ranked(step(rows, chosen=None))
    for stage in ("reference", "picture", "contrast", "final"):
        by_rank = sorted((each for each in seen if stage in each.ranks), key=lambda each: each.ranks[stage])
        logits = [each.logits[stage] for each in by_rank]
        assert logits == sorted(logits, reverse=True)
        assert [each.ranks[stage] for each in by_rank] == list(range(1, len(by_rank) + 1))
    assert step_reading(step(rows, chosen=0 if rows else None), UNSAFE)


@given(text=st.text(), width=st.integers(8, 30))
def test_token_text_is_harmless_and_short(text: str, width: int) -> None:
    shown = shown_text(text, width)
    assert shown.isprintable() and len(shown) <= width
    assert len(shown_text(text)) <= width or "..." in shown


def test_the_table_says_it_all(trace: Path) -> None:
    result = call("explain", trace, "--reply", 1)
    assert result.exit_code == 0 and result.stderr == ""
    for word in (
        "1 of 2",
        "can i pour water",
        "Sorry, no.",
        "from rank 3 to 1",
        "alpha 0.5",
        "seed 0",
        "abababab",
    ):
        assert word in result.stdout, word
    (row,) = (line for line in result.stdout.splitlines() if line.split()[:1] == ["*"])
    assert row.split() == [
        "*",
        '"',
        'Sorry"',
        "2.00",
        "(2)",
        "1.00",
        "(3)",
        "1.50",
        "(3)",
        "+4.00",
        "5.50",
        "(1)",
    ]
    assert call("explain", trace).stdout.count("Sure.") == 1


def test_the_scale_shows_verdict_and_threshold(trace: Path) -> None:
    output = call("explain", trace).stdout
    (line,) = (line for line in output.splitlines() if "safe 0 [" in line)
    scale = line[line.index("[") + 1 : line.index("]")]
    assert scale.index("|") == 25 and scale.index("*") == round(0.97 * 50)


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are different there")
def test_it_fits_a_terminal_of_80_columns_without_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    longest = (" " + "x" * 300, -1234.56, -1234.56, -1234.56, -100.0)
    asked = replace(RECORD.messages[0], text="word " * 50)
    steps = [step([longest, ("\x1b[2J\n", 1.0, 1.0, 1.0, 0.0)] * 4)] * 5
    path = write(tmp_path / "t.jsonl", record(*steps, messages=(asked,), text="a " * 90))
    ours, theirs = pty.openpty()
    process = start("explain", path, stdout=theirs)
    os.close(theirs)
    output = b""
    with suppress(OSError):  # how a terminal ends
        while part := os.read(ours, 4096):
            output += part
    os.close(ours)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""
    text = re.sub(r"\x1b\[[01]?m", "", output.decode())  # bold is no colour
    assert "\x1b" not in text and '"\\x1b[2J\\n"' in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_json(trace: Path) -> None:
    answer = json.loads(call("explain", trace, "--reply", 1, "--json").stdout)
    assert answer["reply"] == 1 and "rank 3 to 1" in answer["reading"] and answer["steps"][0]["candidates"]


def test_many_steps_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", record(*[KEPT] * 20))
    assert "14 more steered steps: --steps 20" in call("explain", path).stdout
    assert "more steered" not in call("explain", path, "--steps", 20).stdout


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    fails(call("explain", tmp_path / "none.jsonl"), 1, "none.jsonl cannot be read: No such file")
    fails(call("explain", tmp_path), 1, "cannot be read: Is a directory")
    for data, reason in (
        (b"", "holds no reply: it is empty"),
        (b"\n\n", "it is empty"),
        (b"\x89PNG\r\n\x1a\n\0", "holds no reply: line 1 is not UTF-8 text"),
        (b'{"text": "hello"}\n', "line 1 is no reply"),
        (b'{"schema_version": 4, "time', "line 1 is cut off"),
    ):
        (tmp_path / "t.jsonl").write_bytes(data)
        fails(call("explain", tmp_path / "t.jsonl"), 1, reason)


def test_a_cut_last_line_is_mentioned(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-9])
    result = call("explain", trace)
    assert result.exit_code == 0 and "1 of 1" in result.stdout
    assert result.stderr == f"{trace}: line 2 is cut off; left out\n"


def test_a_reply_that_is_not_there(trace: Path) -> None:
    fails(call("explain", trace, "--reply", 3), 2, "--reply must be at most 2")
    fails(call("explain", trace, "--reply", 0), 2, "0 is not in the range")


AWKWARD = step(
    [
        ("$x^2$ \\frac " + "y" * 80, 3.0, 2.0, 3.0, 1.0),
        ("\x1b[2J\r\n\0", 2.0, 2.0, 2.0, 0.0),
        ("\u4f60\u597d\U0001f600", 1.0, 1.0, 1.0, -1.0),
        *[(f" {number}", -1.0 * number, -2.0, -1.0 * number, 0.0) for number in range(1, 6)],
    ]
)


@pytest.mark.parametrize(
    "made",
    [
        RECORD,
        record(*[AWKWARD] * 5, text="$\\alpha$ " * 90),
        record(verdict=None),
        record(step([], chosen=None)),
    ],
    ids=["one step", "awkward", "no steps", "no candidates"],
)
def test_a_picture_is_drawn(tmp_path: Path, made: ReplyRecord) -> None:
    pytest.importorskip("matplotlib")
    path = write(tmp_path / "t.jsonl", made)
    result = call("explain", path, "--output", tmp_path / "p.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"picture: {tmp_path / 'p.png'}\n"
    with Image.open(tmp_path / "p.png") as drawn:
        assert len(set(drawn.convert("L").tobytes())) > 50  # not blank


def test_pictures_that_cannot_be_drawn(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(call("explain", trace, "--output", tmp_path / "p.txt"), 2, "must end in .png, .svg, .pdf")
    fails(
        call("explain", trace, "--output", tmp_path / "no" / "p.png"),
        2,
        "no does not exist; make it",
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "safecode_trt.trace.reply_plot", raising=False)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    fails(call("explain", trace, "--output", tmp_path / "p.png"), 1, "pip install 'safecode-trt[eval]'")
    assert call("explain", trace).exit_code == 0
