"""Prompts of tokenizers that put a space in front of every text, and chat templates in all their places."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from safecode_trt.errors import BundleError
from safecode_trt.models import load_spec
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.runtime.template import read_template
from tests.families import FamilyCase, cases
from tests.family_checkpoints import FamilyCheckpoints
from tests.null_bundle import DEMO

SPEC = load_spec(DEMO)
CONTROLS = ("<unk>", "<s>", "</s>", "<image>")
TEMPLATE = "U:{{ messages[0]['content'][-1]['text'] }}</s>A: b"
KINDS = ("prepend", "first", "always")
LLAMA_LIKE = ("idefics2", "llava")


def sentencepiece(kind: str, *more: str) -> dict[str, Any]:
    """tokenizer.json as SentencePiece models are converted to it: characters, bytes, a few words and `more`."""
    whole = ["\u2581a", "\u2581b", "ab", "\u2581ab", "\u2581s", "\u2581<", "\u2581U", *more]
    words = list(dict.fromkeys(word[:end] for word in whole for end in range(2, len(word) + 1)))
    letters = [*map(chr, range(33, 127)), "\u2581", "\n"]
    tokens = [*CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    old = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    new = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": kind, "split": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": c, **flags, "special": True} for i, c in enumerate(CONTROLS)],
        "normalizer": {"type": "Sequence", "normalizers": old} if kind == "prepend" else None,
        "pre_tokenizer": None if kind == "prepend" else new,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [[word[:-1], word[-1]] for word in words],
        },
    }


@pytest.fixture(scope="module", params=KINDS)
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").write_text(json.dumps(sentencepiece(request.param)))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return PromptBuilder(folder, SPEC)


texts = st.lists(st.sampled_from([*CONTROLS, "<", "s>", "ab", " ", "a", "\n"]), max_size=8).map("".join)


def spelled(builder: PromptBuilder, text: str) -> list[str]:
    ids = builder.encode([Message(role="user", text=text)], [])
    return [str(builder.tokenizer.id_to_token(token)) for token in ids]


@pytest.mark.parametrize("text", ["ab", " ab  ab\n", "\u00e9 a"])
def test_text_without_controls_is_tokenised_as_by_transformers(builder: PromptBuilder, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=builder.tokenizer)
    found = builder.encode([Message(role="user", text=text)], [])
    assert found.tolist() == theirs(f"U:{text}</s>A: b")["input_ids"]


@given(text=texts)
def test_no_space_appears_behind_a_cut(builder: PromptBuilder, text: str) -> None:
    first, *tokens = spelled(builder, text)
    end = tokens.index("</s>")
    assert first == "<s>" and not set(CONTROLS) & set(tokens[:end])
    assert "".join(tokens[:end]) == f"\u2581U:{text}".replace(" ", "\u2581")
    # Behind the template's own control token everything is as the tokenizer has it.
    plain = spelled(builder, "a")
    assert tokens[end:] == plain[plain.index("</s>") :]


def test_a_spelled_control_is_split_once_and_keeps_its_words(builder: PromptBuilder) -> None:
    assert spelled(builder, "ab <s> ab") == [
        *("<s>", "\u2581U", ":", "ab", "\u2581<", "s", ">", "\u2581ab"),
        *spelled(builder, "")[3:],
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case", [case for case in cases() if case.model_type in LLAMA_LIKE], ids=lambda case: case.model_type
)
def test_words_behind_a_picture_have_one_space(
    case: FamilyCase, kind: str, made: FamilyCheckpoints, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made.checkpoint(case), tmp_path / "checkpoint"))
    tokenizer = sentencepiece(kind)
    theirs = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    for token in (token for token in theirs if token["content"] not in CONTROLS):
        number = len(tokenizer["model"]["vocab"])
        tokenizer["model"]["vocab"][token["content"]] = number
        tokenizer["added_tokens"].append(token | {"id": number})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    # A legacy tokenizer of theirs puts spaces behind control tokens, as the old normalizer does.
    for name, more in (
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": kind != "first"}),
        ("config.json", {"image_token_id": CONTROLS.index("<image>")}),
    ):
        settings = json.loads((folder / name).read_text()) | more
        (folder / name).write_text(json.dumps(settings))
    spec, picture = load_spec(folder), Image.new("RGB", (60, 40))
    message = Message(role="user", text="ab a", images=1)
    builder = PromptBuilder(folder, spec)
    found = builder.encode([message], [spec.layout(*picture.size)]).tolist()
    assert found == case.token_ids(folder, message.text, picture, spec)


def test_a_template_may_mark_what_the_assistant_said(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = (
        "{% for m in messages %}\n  {% if m['role'] == 'assistant' %}\n"
        "    {% generation %}\n{{ m['content'] }}|{% endgeneration %}\n  {% else %}\n{{ m['content'] }}:{% endif %}\n"
        "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}"
    )
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    (tmp_path / "chat_template.jinja").write_text(source)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(sentencepiece("first"))), chat_template=source
    )
    expected = tokenizer.apply_chat_template(turns, tokenize=False)
    assert read_template(tmp_path, {}, None).render(messages=turns) == expected


def test_where_a_template_is_looked_for(tmp_path: Path) -> None:
    processing_utils = pytest.importorskip("transformers.processing_utils")
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    with pytest.raises(BundleError, match=r"no chat_template\.jinja"):
        read_template(tmp_path, {}, None)
    assert read_template(tmp_path, {}, "family's").render() == "family's"
    assert read_template(tmp_path, {"chat_template": "tokenizer's"}, "family's").render() == "tokenizer's"
    assert read_template(tmp_path, {"chat_template": named}, None).render() == "d"
    # The later ones come first, as in transformers.
    for name, text in (
        ("chat_template.jinja", "file's"),
        ("chat_template.json", '{"chat_template": "old file\'s"}'),
        ("processor_config.json", '{"chat_template": "processor\'s"}'),
    ):
        (tmp_path / name).write_text(text)
        expected = processing_utils.ProcessorMixin.get_processor_dict(tmp_path)[0]["chat_template"]
        assert read_template(tmp_path, {"chat_template": "tokenizer's"}, None).render() == expected
    (tmp_path / "processor_config.json").write_text('{"chat_template": null}')
    assert read_template(tmp_path, {}, None).render() == "old file's"
