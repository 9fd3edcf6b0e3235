"""Incremental text: the pieces add up, no character is split, no stop string is shown."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from safecode_trt.runtime.text_stream import TextStream
from tests.null_bundle import DEMO
from tests.test_prompt_pieces import sentencepiece

TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
BYTES = Tokenizer.from_str(json.dumps(sentencepiece("prepend")))
VOCABULARY = BYTES.get_vocab()
BYTE_TOKENS = [VOCABULARY[f"<0x{byte:02X}>"] for byte in range(256)]


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


@given(
    st.lists(
        st.sampled_from([*BYTE_TOKENS, *map(VOCABULARY.__getitem__, ("\u2581b", "a", "\n", "<s>"))]),
        max_size=12,
    )
)
def test_bytes_that_are_no_characters_end_no_reply(ids: list[int]) -> None:
    """A byte fallback takes all bytes in a row as characters or none of them, also those that were given out."""
    stream = TextStream(BYTES)
    shown = "".join(stream.push(token) for token in ids) + stream.finish()
    assert shown == stream.text
    whole = BYTES.decode(ids, skip_special_tokens=True).lstrip()
    if "\ufffd" not in whole:
        assert shown == whole


def test_text_goes_on_behind_a_byte_that_begins_no_character() -> None:
    stream = TextStream(BYTES)
    tokens = ("<0x0A>", "a", "<0x0A>", "<0xF0>", "\u2581b", "a")
    assert [stream.push(VOCABULARY[token]) for token in tokens] == ["", "a", "\n", "", "\ufffd b", "a"]
