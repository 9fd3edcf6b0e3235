"""What explain says of replies that the engine has made, held against the rows of logits that it saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.ops.reference import Logits
from safecode_trt.policy import Verdict, make_policy
from safecode_trt.policy.base import Combined
from safecode_trt.policy.staged import StagedSteering
from safecode_trt.trace.reading import ranked, reading, step_reading
from safecode_trt.trace.record_file import read_records
from safecode_trt.trace.reply_record import ReplyRecord, make_record
from tests.cli_runner import ASK, call
from tests.null_bundle import write_null_bundle

UNSAFE, SAFE = ("--judge", "constant:1"), ("--judge", "constant:0")
FAR = ("--set", "alpha=30", "--set", "contrast=difference")  # the contrast alone decides
CASES = {
    "the contrast alone": ("--mode", "safecode", *FAR, "--set", "beta=0", "--set", "shift=0"),
    "contrast and verdict": ("--mode", "safecode-paper", *FAR, "--set", "shift=9", *UNSAFE),
    "a mask": ("--mode", "safecode", "--set", "beta=1", "--set", "shift=99", *UNSAFE),
    "text": ("--mode", "rose", "--set", "guidance=20"),
    "forced": ("--mode", "safecode-release", *UNSAFE),
    "lowered": ("--mode", "safecode-release", "--set", "shift=2", *FAR, *SAFE),
    "verdict-text": ("--mode", "verdict-in-prompt", "--set", "threshold=0"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")


@pytest.mark.parametrize("case", CASES)
def test_the_leader_on_the_picture_is_the_models(
    case: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Logits] = []
    combine = StagedSteering.combine

    def noted(self: StagedSteering, step: int, logits: Logits) -> Combined:
        seen.append(logits.copy())
        return combine(self, step, logits)

    monkeypatch.setattr(StagedSteering, "combine", noted)
    picture, trace = tmp_path / "p.png", tmp_path / "t.jsonl"
    ramp = np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(picture)
    options = ("--backend", "null", "--max-new-tokens", 6, "--image", picture, "--trace", trace)
    result = call("run", bundle, *options, *CASES[case], ASK)
    assert result.exit_code == 0, result.output
    (record,) = read_records(trace)
    assert isinstance(record, ReplyRecord)
    del seen[: len(seen) - len(record.steps)]  # the program tries a policy beforehand, to see what it reads
    assert record.steps and len(record.steps) == len(seen)
    lost = 0
    for step, rows in zip(record.steps, seen, strict=True):
        own = int(rows[0].argmax())
        places = {each.candidate.id: place for place, each in enumerate(ranked(step))}
        lost += places[own] >= 8
        leader = next(each for each in ranked(step) if each.ranks.get("picture") == 1)
        assert leader.candidate.id == own
        assert step.chosen is not None and record.sampling.temperature == 0
        said = step_reading(step, record.verdict)
        assert ("no stage changed that" in said) == (step.chosen.id == own)
        assert step.forced == ("forced" in said) == (case == "forced")
        if case in ("forced", "verdict-text"):
            assert not any("contrast" in each.ranks for each in ranked(step)) and "the contrast" not in said
    assert lost or case in ("forced", "a mask", "lowered")
    assert reading(record)
    shown = call("explain", trace, "--output", tmp_path / "p.svg")
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("shift", [1000.0, 1e38])
def test_a_lowered_leader_is_still_recorded(bundle: Path, shift: float) -> None:
    verdict = Verdict(p_unsafe=0.0, threshold=0.5, source="test")
    settings = replace(PAPER, alpha=0.0, shift=shift, verdict="hard")
    with Engine.open(bundle, config=RuntimeConfig(backend="null")) as engine:
        manifest = engine.bundle.manifest
        led = engine.generate(ASK, sampling=SamplingParams(max_new_tokens=1), mode="plain").token_ids
        defaults = replace(manifest.safecode, refusal_token_ids=led, refusal_filter=None)
        policy = make_policy("safecode", defaults, settings=settings).informed(verdict)
        reply = engine.generate(ASK, policy=policy, sampling=SamplingParams(max_new_tokens=1))
        record = make_record(
            reply,
            bundle="",
            backend=engine.model.session.name,
            manifest=manifest,
            tokenizer=engine.model.prompts.tokenizer,
            messages=(),
            image_sha256=(),
            mode="safecode",
            settings={},
            sampling=SamplingParams(),
        )
    last = ranked(record.steps[0])[-1]
    assert last.candidate.id == led[0] and last.ranks == {"picture": 1, "final": 9}
    assert "the verdict (p_unsafe 0.00) lowered" in reading(record) and "from rank 1 to 9" in reading(record)
