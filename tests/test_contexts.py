"""How a context's prompt differs from the request, and where a chat template has a place for a system text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from safecode_trt.errors import ConfigError
from safecode_trt.models import load_spec
from safecode_trt.policy import PromptEdit
from safecode_trt.policy.base import REAL, Context, Plan
from safecode_trt.runtime.contexts import edited
from safecode_trt.runtime.prompt import Message, PromptBuilder
from tests.null_bundle import DEMO

USER = Message(role="user", text="can i {request} it?", images=1)
SYSTEM = Message(role="system", text="Speak plainly.")
EDIT = PromptEdit(template="{request} Now?", system="Be careful.")


def texts(messages: list[Message], edit: PromptEdit, *, system_role: bool) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in edited(messages, edit, system_role=system_role)]


def test_an_edit_of_nothing_changes_nothing() -> None:
    for system_role in (True, False):
        assert edited([SYSTEM, USER], PromptEdit(), system_role=system_role) == [SYSTEM, USER]


def test_a_system_text_comes_in_front() -> None:
    asked = ("user", "can i {request} it? Now?")
    assert texts([USER], EDIT, system_role=True) == [("system", "Be careful."), asked]
    both = ("system", "Be careful.\n\nSpeak plainly.")
    assert texts([SYSTEM, USER], EDIT, system_role=True) == [both, asked]


def test_without_a_system_role_it_heads_the_users_first_turn() -> None:
    first = Message(role="user", text="hi", images=1)
    turns = [first, Message(role="assistant", text="Hello."), Message(role="user", text="and now?")]
    found = edited(turns, EDIT, system_role=False)
    assert [turn.text for turn in found] == ["Be careful.\n\nhi", "Hello.", "and now? Now?"]
    assert [turn.images for turn in found] == [1, 0, 0]


def test_a_prompt_may_show_no_picture() -> None:
    assert [turn.images for turn in edited([USER], PromptEdit(pictures=False), system_role=True)] == [0]


TEMPLATES = {
    "{% for m in messages %}{{ m.role }}: {{ m.content[-1].text }}\n{% endfor %}": True,
    "{% for m in messages if m.role != 'system' %}{{ m.content[-1].text }}{% endfor %}": False,
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}?": False,
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}?": False,
}


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.items())
def test_the_template_decides_where_it_goes(tmp_path: Path, template: str, expected: bool) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("*.safetensors")))
    (folder / "chat_template.jinja").write_text(template)
    assert PromptBuilder(folder, load_spec(folder)).system_role is expected


def test_plans_that_cannot_be() -> None:
    noised = Context(name="noised", picture="noised", lifetime="steered")
    with pytest.raises(ConfigError, match="which noise"):
        Plan(contexts=(REAL, noised))
    with pytest.raises(ConfigError, match="show the pictures"):
        Plan(prompts={"request": PromptEdit(pictures=False)})
