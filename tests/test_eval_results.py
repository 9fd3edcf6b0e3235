"""results.jsonl: whole lines, read back strictly, gone on with after an interruption, split and merged."""

from __future__ import annotations

import errno
import json
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.errors import ConfigError, EvalError
from safecode_trt.eval.results import (
    Result,
    ResultLog,
    Shard,
    finished,
    merge_results,
    read_results,
)
from safecode_trt.records import to_dict


def result(key: str = "b/s/0/0/safe", mode: str = "plain", **changes: Any) -> Result:
    made = Result(
        key=key,
        mode=mode,
        run="r1",
        backend="null",
        asked="a1",
        side="safe",
        category="c",
        answer="Sure.",
        finish_reason="stop",
        tokens=2,
        seconds=0.25,
    )
    return replace(made, **changes)


def write(path: Path, *results: Result) -> Path:
    with ResultLog(path) as log:
        for entry in results:
            log.append(entry)
    return path


numbers = st.none() | st.floats(0, 1)
results = st.builds(
    Result,
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    mode=st.sampled_from(["plain", "safecode"]),
    run=st.text(),
    backend=st.text(),
    asked=st.text(),
    side=st.sampled_from(["safe", "unsafe", "none"]),
    category=st.text(),
    answer=st.text(),
    finish_reason=st.sampled_from(["stop", "length"]),
    tokens=st.integers(0),
    seconds=st.floats(0, 1e6),
    first_token_seconds=numbers,
    p_unsafe=numbers,
    verdict_unsafe=st.none() | st.booleans(),
    fallback_reason=st.none() | st.text(),
)


@given(st.lists(results, unique_by=lambda entry: (entry.key, entry.mode)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, entries: list[Result]) -> None:
    path = tmp_path_factory.mktemp("results") / "deep" / "results.jsonl"
    write(path, *entries)
    found = read_results(path)
    assert found.lines == tuple(entries) and found.cut is None
    assert path.read_bytes().count(b"\n") == len(entries)
    assert found.size == path.stat().st_size


def test_a_result_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "results.jsonl")
    log.append(result())
    assert read_results(log.path).lines == (result(),)
    log.close()


def test_going_on_after_an_interruption(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", result("a"), result("b"))
    whole = path.read_bytes()
    for left in range(1, len(whole) // 2):
        path.write_bytes(whole[:-left])
        found = read_results(path)
        assert found.lines == (result("a"),)
        assert found.cut == whole[found.size : -left].decode()
        with ResultLog(path) as log:
            assert log.earlier == found
            assert finished(log.earlier.lines, mode="plain", run="r1") == {"a"}
            log.append(result("b"))
        assert path.read_bytes() == whole


def test_a_cut_character_is_reported_too(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"key": "\xc3')
    assert read_results(path).cut == '{"key": "\ufffd'
    assert write(path, result()).read_bytes().startswith(b'{"key": "b/s')


def test_a_mode_is_finished_by_itself(tmp_path: Path) -> None:
    done = [result("a"), result("b"), result("a", "vcd", run="r2")]
    assert finished(done, mode="plain", run="r1") == {"a", "b"}
    assert finished(done, mode="vcd", run="r2") == {"a"}
    assert finished(done, mode="safecode", run="r3") == frozenset()
    with pytest.raises(
        EvalError, match=r"mode vcd from another run \(r2, this one is r9\); fix: write to another"
    ):
        finished(done, mode="vcd", run="r9")


def test_no_result_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", result("a"), result("a", "vcd"))
    with ResultLog(path) as log, pytest.raises(EvalError, match="has a result of a in mode plain"):
        log.append(result("a", answer="other"))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(EvalError, match=r"results.jsonl:3: a second result of a in mode plain"):
        read_results(path)


LINE = json.dumps(to_dict(result()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", "not valid JSON"),
        ("{", "is cut off"),
        ("[]", "expected an object"),
        (LINE.replace('"mode"', '"method"'), "method is not a known key"),
        (LINE.replace('"side": "safe"', '"side": "fine"'), "must be one of safe, unsafe, none"),
        (LINE.replace('"tokens": 2', '"tokens": true'), "must be an integer, got True"),
        (LINE.replace('"p_unsafe": null', '"p_unsafe": NaN'), "NaN is no number that is finite"),
        (LINE.replace('"seconds": 0.25', '"seconds": 1e999'), "1e999 is no number that is finite"),
        (LINE.replace('"schema_version": 3', '"schema_version": 2'), "schema version 2, expected 3"),
        (
            '{"schema_version": 2}',
            "schema version 2, expected 3; another version .* write to another --output",
        ),
    ],
)
def test_a_whole_line_that_is_wrong_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(to_dict(result('first')))}\n{line}\n{LINE}\n")
    with pytest.raises(EvalError, match=f"results.jsonl:2.*{message}"):
        read_results(path)
    before = path.read_bytes()
    with pytest.raises(EvalError):
        ResultLog(path)
    assert path.read_bytes() == before


def test_numbers_that_json_lacks_are_not_written(tmp_path: Path) -> None:
    with ResultLog(tmp_path / "results.jsonl") as log:
        for number in (math.nan, math.inf):
            with pytest.raises(EvalError, match="not finite"):
                log.append(result(p_unsafe=number))
        log.append(result())
    assert read_results(log.path).lines == (result(),)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = os.write

    def half(descriptor: int, data: bytes) -> int:
        return write_all(descriptor, data[: len(data) // 2])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ResultLog(tmp_path / "results.jsonl") as log:
        log.append(result("a"))
        for write_some, message in ((half, "No space left on device"), (full, "No space left on device")):
            monkeypatch.setattr(os, "write", write_some)
            with pytest.raises(EvalError, match=message):
                log.append(result("b"))
            monkeypatch.undo()
        log.append(result("b"))
    assert [entry.key for entry in read_results(log.path).lines] == ["a", "b"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot be read: No such file"):
        read_results(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="cannot be written"):
        ResultLog(tmp_path / "file" / "results.jsonl")
    with pytest.raises(EvalError, match="cannot be written"):
        merge_results([], tmp_path / "file" / "results.jsonl")


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"])), max_size=50), st.integers(1, 9))
def test_every_item_is_in_one_shard(keys: set[str], count: int) -> None:
    shards = [Shard(index=index, count=count) for index in range(1, count + 1)]
    assert all([shard.holds(key) for shard in shards].count(True) == 1 for key in keys)


def test_shards_are_stable_and_even() -> None:
    keys = [f"mssbench/chat-if/{n}/0/safe" for n in range(4000)]
    shard = Shard.parse("2/4")
    # Written down once: which part an item belongs to must not change between versions.
    assert [n for n, key in enumerate(keys[:24]) if shard.holds(key)] == [0, 8, 12, 13]
    sizes = Counter(next(i for i in range(1, 5) if Shard(index=i, count=4).holds(key)) for key in keys)
    assert all(abs(size - 1000) < 120 for size in sizes.values())
    assert Shard.parse("1/1").holds("anything")


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1 / 2", "1/2\n", "٢/٤"]
)
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ConfigError, match="shard must be i/n"):
        Shard.parse(text)


def test_merging(tmp_path: Path) -> None:
    parts = [
        write(tmp_path / "1.jsonl", result("c"), result("a")),
        write(tmp_path / "2.jsonl", result("b"), result("a", "vcd", run="r2")),
        write(tmp_path / "3.jsonl", result("a")),  # the same line again does no harm
    ]
    parts[1].write_bytes(parts[1].read_bytes() + b'{"key"')
    read = merge_results(parts, tmp_path / "all.jsonl")
    assert [part.cut for part in read] == [None, '{"key"', None]
    merged = read_results(tmp_path / "all.jsonl").lines
    assert [(entry.key, entry.mode) for entry in merged] == [
        ("a", "plain"),
        ("a", "vcd"),
        ("b", "plain"),
        ("c", "plain"),
    ]
    merge_results(list(reversed(parts)), tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


def test_parts_that_contradict_each_other(tmp_path: Path) -> None:
    first = write(tmp_path / "1.jsonl", result("a"))
    target = write(tmp_path / "all.jsonl", result("kept"))
    before = target.read_bytes()
    for other, message in (
        (result("a", answer="No."), r"1.jsonl and .*2.jsonl: different results of a in mode plain"),
        (result("b", run="r2"), r"1.jsonl and .*2.jsonl: mode plain comes from different runs"),
        (result("b", backend="trt"), "mode plain was decoded by different backends, null and trt"),
    ):
        second = tmp_path / "2.jsonl"
        second.unlink(missing_ok=True)
        write(second, other)
        with pytest.raises(EvalError, match=message):
            merge_results([first, second], target)
        assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl", "all.jsonl"]
