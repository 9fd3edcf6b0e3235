"""Judges: each says a verdict or raises SteeringError, and nothing in between."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecode_trt.errors import ConfigError, SteeringError
from safecode_trt.policy.base import Verdict
from safecode_trt.runtime.judges import JudgeConfig, Keyed, case_key, make_judge
from safecode_trt.runtime.judges.ensemble import EnsembleJudge, Rule
from tests.judge_cases import CASE, PICTURE, REQUEST, Says, made

# -- by name


def test_the_model_alone_needs_no_judge() -> None:
    assert make_judge(JudgeConfig()) is None


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        (("gpt",), "judges must be one of self, self-caption, constant:P"),
        (("constant",), "got the judge 'constant'"),
        (("constant:1.5",), "between 0 and 1, got '1.5'"),
        (("constant:nan",), "between 0 and 1"),
        (("endpoint:http://host/v1",), "URL#MODEL"),
        (("endpoint:ftp://host/v1#m",), "must be like https"),
        (("file:nowhere.jsonl",), "nowhere.jsonl cannot be read"),
        (("self", "self"), "must name each judge once"),
        ((), "at least one judge"),
    ],
)
def test_what_names_no_judge(judges: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make_judge(JudgeConfig(judges=judges))


def test_a_rule_that_is_none() -> None:
    with pytest.raises(ConfigError, match="rule must be one of max, mean, majority, got 'majorty'"):
        JudgeConfig(judges=("constant:0", "constant:1"), rule="majorty")  # type: ignore[arg-type]


def test_the_threshold_of_the_model_itself_is_the_bundles() -> None:
    with pytest.raises(ConfigError, match="threshold has no effect on the judge self"):
        JudgeConfig(threshold=0.3)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        JudgeConfig(judges=("constant:0.3",), threshold=2.0)


# -- constant and file


def test_a_constant() -> None:
    assert made("constant:0.4").judge(CASE) == Verdict(p_unsafe=0.4, threshold=0.5, source="constant")
    assert made("constant:0.4", threshold=0.4).judge(CASE).unsafe


def write_lines(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return f"file:{path}"


def test_verdicts_from_a_file_by_item_and_by_content(tmp_path: Path) -> None:
    content = case_key(REQUEST, [PICTURE])
    name = write_lines(
        tmp_path / "v.jsonl", {"key": "a/b", "p_unsafe": 0.9}, "", {"key": content, "p_unsafe": 0.2}
    )
    judge = made(name)
    assert judge.judge(CASE).p_unsafe == 0.2
    assert Keyed(judge, "a/b").judge(CASE).p_unsafe == 0.9
    other = replace(CASE, messages=[replace(REQUEST[0], text="something else")])
    with pytest.raises(SteeringError, match="has none for"):
        judge.judge(other)
    with pytest.raises(SteeringError, match="has none for c/d"):
        Keyed(judge, "c/d").judge(other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"key": "a", "p_unsafe": 0.1}, ":2: key has 'a' again"),
        ({"key": "b", "p_unsafe": 1.1}, ":2: p_unsafe must be between 0 and 1"),
        ({"key": " ", "p_unsafe": 0.1}, ":2: key must not be empty"),
        ({"key": "b", "unsafe": True}, ":2: unsafe is not a known key"),
        ({"key": "b"}, ":2: p_unsafe is missing"),
        ("nonsense", ":2: is not valid JSON"),
        ('{"key": "b", "p_unsafe": NaN}', ":2: is not valid JSON .NaN is no number"),
    ],
)
def test_a_file_that_contradicts_itself(line: object, message: str, tmp_path: Path) -> None:
    name = write_lines(tmp_path / "v.jsonl", {"key": "a", "p_unsafe": 0.1}, line)
    with pytest.raises(ConfigError, match=message):
        made(name)


def test_a_key_is_of_all_that_is_said_and_seen() -> None:
    darker = PICTURE.point([0, *range(255)] * 3)
    asked = REQUEST[0]
    keys = {
        case_key(REQUEST, [PICTURE]),
        case_key(REQUEST, [darker]),
        case_key(REQUEST, []),
        case_key([replace(asked, text="x")], [PICTURE]),
        case_key([replace(asked, role="system"), asked], [PICTURE]),
        case_key(REQUEST, [PICTURE.resize((48, 192))]),
    }
    assert len(keys) == 6


# -- several


def ensemble(rule: Rule, *members: tuple[float, float] | None) -> Verdict:
    judges = [
        Says(None if pair is None else Verdict(p_unsafe=pair[0], threshold=pair[1], source="says"))
        for pair in members
    ]
    return EnsembleJudge(members=tuple(judges), rule=rule, threshold=0.5).judge(CASE)


def test_the_rules_of_an_ensemble() -> None:
    members = ((0.9, 0.95), (0.1, 0.5), (0.2, 0.1))
    assert ensemble("max", *members).p_unsafe == 0.9
    assert ensemble("mean", *members).p_unsafe == pytest.approx(0.4)
    assert ensemble("majority", *members).p_unsafe == pytest.approx(1 / 3)
    assert ensemble("majority", (0.9, 0.5), (0.1, 0.5)).unsafe  # half of them are enough


@given(st.lists(st.booleans(), min_size=1, max_size=7))
def test_a_majority_leans_to_the_side_of_its_vote(votes: list[bool]) -> None:
    verdict = ensemble("majority", *((float(vote), 0.5) for vote in votes))
    assert verdict.unsafe == (2 * sum(votes) >= len(votes)) == (verdict.lean > 0)
    assert verdict.lean != 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.sampled_from(["max", "mean", "majority"]))
def test_an_ensemble_that_agrees_says_what_its_members_say(beliefs: list[float], rule: Rule) -> None:
    verdict = ensemble(rule, *((p, 0.5) for p in beliefs))
    assert 0 <= verdict.p_unsafe <= 1
    if all(p >= 0.5 for p in beliefs):
        assert verdict.unsafe
    if all(p < 0.5 for p in beliefs):
        assert not verdict.unsafe


@pytest.mark.parametrize("rule", ["max", "mean", "majority"])
def test_an_ensemble_does_without_no_member(rule: Rule) -> None:
    with pytest.raises(SteeringError, match="the judge says has no verdict: it is down"):
        ensemble(rule, (0.9, 0.5), None)


def test_an_ensemble_by_names() -> None:
    judge = made("constant:0.2", "constant:0.6", rule="mean", threshold=0.4)
    verdict = judge.judge(CASE)
    assert (verdict.p_unsafe, verdict.unsafe, judge.name) == (0.4, True, "mean(constant, constant)")
