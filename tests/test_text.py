"""Incremental text: the pieces add up, no character is split, no stop string is shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from safecode_trt.runtime.text import TextStream
from tests.null_bundle import DEMO

TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def feed(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stop)
    pieces = []
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@given(st.text(alphabet="ab é漢🐍\n.", max_size=30))
def test_the_pieces_are_the_text(text: str) -> None:
    pieces, stream = feed(text)
    assert "".join(pieces) == text.lstrip() == stream.text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(alphabet="abc", max_size=30), st.sampled_from([("ab",), ("abc", "ca"), ("bb", "cc")]))
def test_nothing_of_a_stop_string_is_shown(text: str, stop: tuple[str, ...]) -> None:
    pieces, stream = feed(text, stop)
    ends = [at for word in stop if (at := text.find(word)) >= 0]
    assert "".join(pieces) == (text[: min(ends)] if ends else text)
    assert stream.stopped == bool(ends)


def test_an_unfinished_character_is_replaced_only_at_the_end() -> None:
    ids = TOKENIZER.encode("🐍", add_special_tokens=False).ids
    assert len(ids) > 1
    stream = TextStream(TOKENIZER)
    assert "".join(stream.push(token) for token in ids[:-1]) == ""
    assert stream.finish() == "\ufffd"
