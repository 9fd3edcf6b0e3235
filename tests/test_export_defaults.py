from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.errors import CheckpointError
from safecode_trt.export.defaults import safecode_defaults
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.models import load_spec
from safecode_trt.policy import make_policy
from safecode_trt.runtime.prompt import PromptBuilder
from tests.test_prompt_pieces import sentencepiece


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def defaults(folder: Path, **settings: Any) -> SafeCodeDefaults:
    if settings:
        (folder / "safecode.json").write_text(json.dumps(settings))
    return safecode_defaults(folder, load_spec(folder))


def tokens(folder: Path, ids: tuple[int, ...]) -> list[str]:
    tokenizer = PromptBuilder(folder, load_spec(folder)).tokenizer
    return [tokenizer.decode([token]) for token in ids]


def test_defaults_without_a_file(folder: Path) -> None:
    found = defaults(folder)
    assert tokens(folder, (found.safe_token_id, found.unsafe_token_id)) == [" safe", " unsafe"]
    assert "{request}" in found.judge_template
    assert {"Sorry", " Sorry", "I", " I"} <= set(tokens(folder, found.refusal_token_ids))
    make_policy("safecode", found)


def test_an_answer_after_a_line_break_has_no_leading_space(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("Assistant:", "Assistant:\n"))
    with pytest.raises(CheckpointError, match="none of the usual verdicts is a single token"):
        defaults(folder)  # this tokenizer has " safe", but no "safe"


def test_the_checkpoint_may_bring_its_own(folder: Path) -> None:
    found = defaults(
        folder,
        judge_template="{request} Is that safe?",
        verdict={"safe": " Yes", "unsafe": " No"},
        refusal_phrases=[" Sorry, no"],
        fallback_refusal="No.",
        settings={"alpha": 0.5},
        reference_seed=3,
        reference_sigma=0.7,
    )
    assert tokens(folder, (found.safe_token_id, found.unsafe_token_id)) == [" Yes", " No"]
    assert sorted(tokens(folder, found.refusal_token_ids)) == [" Sorry", "Sorry"]
    assert (found.settings.alpha, found.reference_seed, found.reference_sigma) == (0.5, 3, 0.7)


def test_half_a_word_is_no_refusal_token(folder: Path) -> None:
    found = defaults(folder, refusal_phrases=[" Yes indeed"])
    assert tokens(folder, found.refusal_token_ids) == [" Yes"], "bare Yes would begin with the letter Y"


@pytest.mark.parametrize("kind", ["prepend", "first", "always"])
@pytest.mark.parametrize(
    ("opening", "words"),
    [
        ("A:", {"\u2581Yes", "\u2581No"}),
        ("A:\n", {"Yes", "No"}),
        ("A: ", {"Yes", "No"}),
        ("</s>", {"Yes", "No"}),
    ],
)
def test_the_answers_follow_the_opening(folder: Path, kind: str, opening: str, words: set[str]) -> None:
    """A tokenizer of SentencePiece's kind; two of its forms begin anew behind a control token."""
    described = sentencepiece(kind, "\u2581Yes", "\u2581No", "Yes", "No")
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "chat_template.jinja").write_text(f"{{{{ messages[0]['content'][-1]['text'] + {opening!r} }}}}")
    tokenizer = PromptBuilder(folder, load_spec(folder)).tokenizer
    found = defaults(folder, refusal_phrases=[" Yes indeed"])
    if opening == "</s>" and kind != "first":
        words = {"\u2581Yes", "\u2581No"}
    assert {tokenizer.id_to_token(token) for token in (found.safe_token_id, found.unsafe_token_id)} == words
    assert [tokenizer.id_to_token(token) for token in found.refusal_token_ids] == ["\u2581Yes"]


VERDICT = {"safe": " safe", "unsafe": " unsafe"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "?"}, "judge is not a known key"),
        ({"judge_template": "{request}"}, "go together"),
        ({"judge_template": "?", "verdict": VERDICT}, "must hold {request}"),
        (
            {"judge_template": "{request}", "verdict": {"safe": " harmless", "unsafe": " unsafe"}},
            r"' harmless' and ' unsafe' must be two different single tokens",
        ),
        (
            {"judge_template": "{request}", "verdict": {"safe": " safe", "unsafe": " safe"}},
            "two different single tokens",
        ),
        ({"refusal_phrases": []}, "refusal_phrases must be a list of non-empty strings"),
        ({"settings": {"alpha": -1.0}}, "alpha must be"),
    ],
)
def test_mistakes_are_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        defaults(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_judge_template": "{request} safe?"}, "must hold {request} and {caption}"),
        ({"explanation": "because"}, "explanation must hold {reason}"),
        ({"verdict_floor": 1.5}, "verdict_floor must be between 0 and 1"),
    ],
)
def test_templates_without_their_places(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        defaults(folder, **settings)


def test_the_judge_of_captions_asks_what_the_judge_asks(folder: Path) -> None:
    found = defaults(folder)
    assert found.caption_judge_template.endswith(found.judge_template)
    assert "{caption}" in found.caption_judge_template and found.verdict_floor == 0
