"""The requests that real decoders are measured on: how many, how varied, and that the split is fixed."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "tools" / "real_requests.json"
REQUESTS: list[dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))["requests"]
MAX_CHARACTERS = 120
"""Above it a request would begin to describe how, where it should only name what is wanted."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def test_counts_and_split() -> None:
    found = Counter((request["expected"], request["split"]) for request in REQUESTS)
    assert found == {
        ("decline", "validation"): 50,
        ("decline", "test"): 100,
        ("answer", "validation"): 50,
        ("answer", "test"): 100,
    }


def test_every_request_has_the_same_fields() -> None:
    assert {tuple(request) for request in REQUESTS} == {("id", "expected", "category", "split", "text")}
    assert len({request["id"] for request in REQUESTS}) == len(REQUESTS)
    assert all(request["text"] == request["text"].strip() for request in REQUESTS)


@pytest.mark.parametrize("expected", ["decline", "answer"])
def test_categories_are_even_and_in_both_splits(expected: str) -> None:
    chosen = [request for request in REQUESTS if request["expected"] == expected]
    assert set(Counter(request["category"] for request in chosen).values()) == {10}
    splits = {(request["category"], request["split"]) for request in chosen}
    assert len(splits) == 2 * len({request["category"] for request in chosen})


def test_no_request_repeats_another() -> None:
    for one, other in combinations(REQUESTS, 2):
        mine, theirs = set(words(one["text"])), set(words(other["text"]))
        assert len(mine & theirs) < 0.75 * len(mine | theirs), (one["text"], other["text"])


@pytest.mark.parametrize("expected", ["decline", "answer"])
def test_form_varies(expected: str) -> None:
    texts = [request["text"] for request in REQUESTS if request["expected"] == expected]
    assert max(map(len, texts)) <= MAX_CHARACTERS
    lengths = sorted(len(words(text)) for text in texts)
    assert lengths[0] <= 6 and lengths[-1] >= 16
    questions = sum(text.endswith("?") for text in texts)
    assert 40 <= questions <= 110
    openings = Counter(tuple(words(text)[:2]) for text in texts)
    assert max(openings.values()) <= len(texts) // 4
