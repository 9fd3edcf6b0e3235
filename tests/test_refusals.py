"""Refusal phrases as tokens, and those that ordinary answers begin with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.engine import Engine
from safecode_trt.errors import ConfigError
from safecode_trt.eval.harmless import HARMLESS, filter_refusals, harmless_answers, read_requests
from safecode_trt.models import load_spec
from safecode_trt.runtime import Reply
from safecode_trt.runtime.prompt import PromptBuilder
from safecode_trt.runtime.refusals import (
    first_tokens,
    opens_with,
    phrase_tokens,
    read_phrases,
    with_refusals,
)
from tests.cli_runner import call, fails
from tests.null_bundle import DEMO, write_null_bundle

PROMPTS = PromptBuilder(DEMO, load_spec(DEMO))
SORRY, SPACED_I, BARE_I = (PROMPTS.tokenizer.encode(text).ids[0] for text in (" Sorry", " I", "I"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "bundle")


def reply_of(bundle: Path) -> Reply:
    with Engine.open(bundle, config=RuntimeConfig(backend="null")) as engine:
        return engine.generate("hello", mode="plain")


# -- phrases


def test_a_phrase_is_known_by_its_first_word_in_both_spellings() -> None:
    assert first_tokens(PROMPTS, [" Sorry", " I must refuse"]) == tuple(sorted({SORRY, SPACED_I, BARE_I}))
    assert first_tokens(PROMPTS, ["I  must\u00a0refuse"]) == first_tokens(PROMPTS, ["I must refuse"])
    curly, straight = (phrase_tokens(PROMPTS, f"I{sign}m sorry") for sign in ("\u2019", "'"))
    assert curly == straight


def test_half_a_word_is_no_refusal_token() -> None:
    assert len(phrase_tokens(PROMPTS, " Unfortunately no")) > 2
    assert (
        first_tokens(PROMPTS, [" Sorry", " Unfortunately no"])
        == first_tokens(PROMPTS, [" Sorry"])
        == (SORRY,)
    )
    with pytest.raises(ConfigError, match="none of 1 refusal phrases begins with a whole word"):
        first_tokens(PROMPTS, [" Unfortunately no"])


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("Sorry, no.", True),
        ("  SORRY", True),
        ("Sorrywise, pour it.", False),
        ("I can\u2019t do that.", True),
        ("I can\u02bct do that.", True),
        ("i can't.", True),
        ("I can take that.", False),
        ("I", False),
        ("", False),
    ],
)
def test_how_a_text_opens(text: str, opens: bool) -> None:
    assert opens_with(text, (" Sorry", "I can\u2019t", "!!")) is opens


def test_phrases_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text(" Sorry\n\n Sorry\nNo way  \n")
    assert read_phrases(path) == (" Sorry", "No way")
    for content, message in ((b"\n \n", "holds no refusal phrase"), (b"caf\xe9", "is not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_phrases(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_phrases(tmp_path / "nowhere.txt")


def words_only(tmp_path: Path) -> PromptBuilder:
    """A tokenizer that knows two words, and drops what is no letter."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("*.safetensors")))
    described: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "[^a-z]+"},
            "behavior": "Removed",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "sorry": 1, "no": 2}, "unk_token": "[UNK]"},
    }
    spec = load_spec(folder)
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return PromptBuilder(folder, spec)


def test_phrases_that_vanish(tmp_path: Path, bundle: Path) -> None:
    prompts = words_only(tmp_path)
    assert phrase_tokens(prompts, "sorry no") == (1, 2)
    with pytest.raises(ConfigError, match=r"'!!' becomes no token"):
        phrase_tokens(prompts, "!!")
    with pytest.raises(ConfigError, match=r"'sorry dear' becomes the unknown token"):
        first_tokens(prompts, ["sorry dear"])
    defaults = Bundle.open(bundle).manifest.safecode
    with pytest.raises(ConfigError, match=r"'no' becomes token 2, but the model has 2 tokens"):
        with_refusals(defaults, ["no"], prompts, 2)
    found = with_refusals(defaults, ["no", "sorry no"], prompts, 3)
    assert (found.refusal_tokens, found.refusal_token_ids) == (((2,), (1, 2)), (1, 2))


# -- the filter


def answered(reply: Reply, firsts: Sequence[int], text: str = "A dog.") -> list[Reply]:
    return [replace(reply, token_ids=(token, 5), text=text) for token in firsts]


def test_tokens_that_begin_ordinary_answers_are_dropped(bundle: Path) -> None:
    reply, defaults = reply_of(bundle), Bundle.open(bundle).manifest.safecode
    defaults = replace(defaults, refusal_token_ids=(22, 23, 24), refusal_phrases=(" Sorry",))
    replies = answered(reply, [22, 22, 23, *[40] * 17])
    found = filter_refusals(defaults, replies, 0.05).refusal_filter
    assert found is not None
    assert (found.answers, found.share, found.dropped, found.found) == (20, 0.05, (22,), (2,))
    # A refusal of a harmless request says nothing about how answers begin.
    refused = answered(reply, [23] * 30, "Sorry, no.") + answered(
        reply, [24] * 30, "I cannot help with that."
    )
    refused += answered(reply, [24] * 30, "SORRY: no.")
    again = filter_refusals(defaults, replies + refused, 0.05).refusal_filter
    assert again == found
    with pytest.raises(ConfigError, match="none of 90 harmless requests was answered"):
        filter_refusals(defaults, refused, 0.05)
    wise = answered(reply, [23] * 20, "Sorrywise, it is a dog.")
    counted = filter_refusals(defaults, replies + wise, 0.05).refusal_filter
    assert counted is not None and (counted.answers, counted.dropped) == (40, (23,))
    with pytest.raises(ConfigError, match="every refusal token begins"):
        filter_refusals(defaults, answered(reply, [22, 23, 24]), 0.05)


def test_answers_to_every_request_about_every_picture(bundle: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, int, int]] = []
    picture = DEMO / "scenes" / "8-apple.png"
    with Engine.open(bundle, config=RuntimeConfig(backend="null")) as engine:
        replies = harmless_answers(
            engine, ["what?", "why?"], [picture, picture], progress=lambda *at: asked.append(at)
        )
    assert len(replies) == 4 and asked[-1] == ("asking", 4, 4)
    assert len(set(HARMLESS)) == len(HARMLESS)
    path = tmp_path / "requests.txt"
    path.write_text("what?\n\nwhy?\n")
    assert read_requests(path) == ("what?", "why?")
    path.write_text("")
    with pytest.raises(ConfigError, match="holds no request"):
        read_requests(path)


# -- the verb


def test_the_verb_writes_what_it_finds(bundle: Path, tmp_path: Path) -> None:
    with Engine.open(bundle, config=RuntimeConfig(backend="null")) as engine:
        first = engine.generate(HARMLESS[0], mode="plain").token_ids[0]
        word = engine.model.prompts.tokenizer.decode([first])
    phrases = tmp_path / "phrases.txt"
    phrases.write_text(f" Sorry\n{word} no\n")
    arguments = ("refusals", bundle, "--backend", "null", "--refusals", phrases)
    shown = call(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "dropped, begins" in shown.stdout and "not stored" in shown.stderr
    assert Bundle.open(bundle).manifest.safecode.refusal_filter is None
    stored = json.loads(call(*arguments, "--write", "--json").stdout)
    found = Bundle.open(bundle).manifest.safecode
    assert found.refusal_filter is not None and first in found.refusal_filter.dropped
    assert stored["refusal_filter"]["dropped"] == list(found.refusal_filter.dropped)
    assert found.refusal_phrases == (" Sorry", f"{word} no")


def test_mistakes_of_the_verb(bundle: Path, tmp_path: Path) -> None:
    arguments = ("refusals", bundle, "--backend", "null")
    fails(call(*arguments, "--corpus", tmp_path / "none.txt"), 2, "none.txt cannot be read")
    fails(call(*arguments, "--share", 1.5), 2, "--share must be at least 0 and below 1")
    fails(call(*arguments, "--image", tmp_path / "none.png"), 1, "none.png does not exist")


def test_what_cannot_be_written_is_known_before_the_work(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    written = ("refusals", bundle, "--backend", "null", "--write", "--corpus", "nowhere.txt")
    fails(call(*written), 1, "cannot be written; fix: change its permissions, or leave out --write")
    fitted = ("calibrate", bundle, "--backend", "null", "--items", "nowhere.jsonl")
    fails(call(*fitted), 1, "cannot be written; fix: change its permissions, or pass --dry-run")
