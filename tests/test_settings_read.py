"""Which settings a mode reads, against what changing them does to its plan and its logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.config import MODES, Mode, SafeCodeConfig, SamplingParams
from safecode_trt.manifest import SafeCodeDefaults
from safecode_trt.policy import make_policy, mode_settings
from safecode_trt.policy.base import Verdict
from safecode_trt.policy.settings_read import settings_read
from tests.cli_runner import call, said
from tests.null_bundle import write_null_bundle

DRAWN = SamplingParams(temperature=0.31, top_p=0.77, top_k=7, min_p=0.03, max_new_tokens=1000)
OTHER: dict[str, Any] = {
    "contrast": "vcd",
    "alpha": 0.77,
    "beta": 0.33,
    "sigma": 0.4,
    "noise_step": 321,
    "reference": "absent",
    "top_k": 3,
    "verdict": "soft",
    "shift": 1.7,
    "contrast_steps": 1,
    "shift_steps": 1,
    "guidance": 0.9,
    "guidance_steps": 1,
    "fallback": "error",
}
"""Another value than any mode's own."""


@pytest.fixture(scope="module")
def defaults(tmp_path_factory: pytest.TempPathFactory) -> SafeCodeDefaults:
    folder = write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")
    return Bundle.open(folder).manifest.safecode


def outcome(mode: Mode, defaults: SafeCodeDefaults, settings: SafeCodeConfig) -> list[object]:
    """All that a policy makes of random logits under several verdicts, in its first steps."""
    policy = make_policy(mode, defaults, settings=settings)
    seen: list[object] = [policy.plan, policy.fallback]
    ids = [token for ids in (defaults.refusal_token_ids, *defaults.refusal_tokens) for token in ids]
    random = np.random.default_rng(0)
    for p_unsafe in (0.1, 0.7):
        informed = policy.informed(Verdict(p_unsafe=p_unsafe, threshold=0.5, source="test"))
        names = [context.name for context in informed.plan.contexts]
        rows = random.standard_normal((len(names), max(ids) + 9)).astype(np.float32)
        steering = informed.begin(dict(zip(names, rows, strict=True)))
        seen += [steering.steps, steering.answer]
        seen += [steering.sampling(DRAWN, steered=steered) for steered in (True, False)]
        seen += [steering.combine(step, rows).logits.tobytes() for step in range(3)]
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_read_changes_nothing_and_what_is_read_may(
    mode: Mode, defaults: SafeCodeDefaults
) -> None:
    settings = mode_settings(mode, defaults)
    read = settings_read(mode, defaults, settings=settings, sampling=DRAWN).settings
    usual = outcome(mode, defaults, settings)
    for name, value in OTHER.items():
        if mode == "safecode-release" and name == "reference":
            continue  # it takes no other
        same = outcome(mode, defaults, replace(settings, **{name: value})) == usual
        assert same or name in read, f"{name} is not read and changes the reply"
    assert "fallback" in read


def test_a_fixed_noise_and_a_weight_of_zero_leave_settings_unread(defaults: SafeCodeDefaults) -> None:
    paper = mode_settings("safecode-paper", defaults)

    def read(**changes: Any) -> frozenset[str]:
        settings = replace(paper, **changes)
        return settings_read("safecode-paper", defaults, settings=settings, sampling=DRAWN).settings

    assert "sigma" in read() and "sigma" not in read(reference="cached") | read(noise_step=1)
    assert not {"beta", "sigma", "contrast"} & read(alpha=0.0)
    assert not {"top_k", "verdict", "threshold", "abstain"} & read(shift=0.0)


NOTES = [
    (("--mode", "rose", "--set", "alpha=9"), "no effect in mode rose: --set alpha"),
    (("--mode", "rose", "--set", "guidance=1"), None),
    (("--mode", "vcd", "--set", "threshold=0.1"), "no effect in mode vcd: --set threshold"),
    (("--mode", "verdict-gate", "--set", "shift=1"), "no effect in mode verdict-gate: --set shift"),
    (("--mode", "safecode", "--set", "guidance=1"), "no effect in mode safecode: --set guidance"),
    (("--mode", "vcd", "--refusals", "{words}"), "no effect in mode vcd: --refusals"),
    (("--mode", "vcd", "--prompts", "{prompts}"), "no effect in mode vcd: --prompts"),
    (("--mode", "cfg", "--prompts", "{prompts}"), None),
    (("--top-p", "0.5"), "no effect in mode safecode: --top-p"),
    (("--top-p", "0.5", "--temperature", "1"), None),
    (("--mode", "plain", "--seed", "3"), "no effect in mode plain: --seed"),
    (("--mode", "safecode-paper", "--seed", "3"), None),
    (
        ("--mode", "safecode-release", "--temperature", "1"),
        "no effect in mode safecode-release: --temperature",
    ),
    (("--threads", "3"), "no effect with --backend null: --threads"),
    (("--allow-cpu-fallback",), "no effect with --backend null: --allow-cpu-fallback"),
]


@pytest.mark.parametrize(("options", "note"), NOTES, ids=[" ".join(options) for options, _ in NOTES])
def test_options_without_effect_are_named(tmp_path: Path, options: tuple[str, ...], note: str | None) -> None:
    bundle = write_null_bundle(tmp_path / "bundle")
    files = {"words": tmp_path / "words.txt", "prompts": tmp_path / "prompts.json"}
    files["words"].write_text("Sorry, I cannot help with that.\n")
    files["prompts"].write_text('{"principle": "Be kind."}')
    given = [option.format(**files) for option in options]
    result = call("run", bundle, "--backend", "null", *given, "hello")
    assert result.exit_code == 0, result.output
    assert [line for line in said(result.stderr) if "no effect" in line] == ([note] if note else [])
