"""Which arms an evaluation has, and what the digests of its runs depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safecode_trt.bundle import Bundle
from safecode_trt.calibration import Calibration, Reliability
from safecode_trt.config import RuntimeConfig, SafeCodeConfig, SamplingParams
from safecode_trt.engine_entry import EngineEntry
from safecode_trt.errors import ConfigError
from safecode_trt.eval.arms import PARTS, Arm, ablations, make_arms
from safecode_trt.eval.runner import RunnerConfig, backend_name, bundle_digest, item_seed
from safecode_trt.manifest import Manifest, RefusalFilter
from safecode_trt.runtime.judges import JudgeConfig
from tests.null_bundle import write_null_bundle

PLAIN, OURS = Arm(name="plain", mode="plain"), Arm(name="safecode", mode="safecode")
OWN = JudgeConfig()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Bundle.open(write_null_bundle(tmp_path_factory.mktemp("null") / "bundle")).manifest


def test_every_part_is_switched_off_alone(manifest: Manifest) -> None:
    """A part is one that the settings have; each ablation differs from them in that part only."""
    settings = SafeCodeConfig(
        contrast="vcd", alpha=0.5, beta=0.1, reference="cached", verdict="soft", shift_steps=1
    )
    known = replace(manifest.safecode, settings=settings, refusal_filter=None)
    found = {arm.name.removeprefix("safecode without "): arm for arm in ablations(known, OWN)}
    assert found.pop("image-aware verdict").judge == "self-caption"
    assert set(found) == set(PARTS) - {"abstain band", "refusal filter"}
    for part, arm in found.items():
        assert arm.settings == replace(known.settings, **PARTS[part].without)
    dropped = RefusalFilter(answers=9, share=0.1, dropped=(known.refusal_token_ids[0],), found=(5,))
    (arm,) = set(ablations(replace(known, refusal_filter=dropped), OWN)) - set(ablations(known, OWN))
    assert arm.settings is not None and not arm.settings.refusal_filter
    assert not ablations(replace(known, settings=SafeCodeConfig(alpha=0.0, shift=0.0)), OWN)
    with pytest.raises(ConfigError, match="got plain twice"):
        make_arms(["plain", "plain"], ablate=False, defaults=known, judge=OWN)


CURVE = Reliability(accuracy=0.9, calibration_error=0.1, bins=())
CALIBRATION = Calibration(
    judge="self",
    temperature=2.0,
    threshold=0.6,
    items=50,
    unsafe_items=20,
    items_sha256="0" * 64,
    before=CURVE,
    after=CURVE,
)
ALL = SafeCodeConfig(
    contrast="vcd", alpha=0.5, beta=0.1, reference="cached", verdict="soft", shift_steps=1, abstain=(0.4, 0.6)
)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"alpha": 0.0}, {"contrast", "mask", "cached reference"}),
        ({"contrast_steps": 0}, {"contrast", "mask", "cached reference"}),
        ({"reference": "absent"}, {"cached reference"}),
        ({"reference": "noised"}, {"cached reference"}),
        ({"shift_steps": None}, {"first step only"}),
        ({"shift_steps": 3}, {"first step only"}),
        (
            {"shift": 0.0},
            {
                "verdict",
                "soft verdict",
                "first step only",
                "abstain band",
                "image-aware verdict",
                "calibration",
            },
        ),
    ],
)
def test_a_part_that_is_not_in_use_makes_no_arm(
    manifest: Manifest, changes: dict[str, Any], missing: set[str]
) -> None:
    known = replace(manifest.safecode, settings=ALL, refusal_filter=None, calibration=CALIBRATION)

    def names(settings: SafeCodeConfig) -> set[str]:
        arms = ablations(replace(known, settings=settings), OWN)
        assert all(arm.settings != settings or arm.judge or not arm.calibrated for arm in arms)
        return {arm.name.removeprefix("safecode without ") for arm in arms}

    assert names(ALL) - names(replace(ALL, **changes)) == missing
    assert names(ALL) >= names(replace(ALL, **changes))


@pytest.mark.parametrize("judges", [("constant:0.4",), ("self", "constant:0.4"), ("self-caption",)])
def test_another_judge_has_no_calibration_to_do_without(manifest: Manifest, judges: tuple[str, ...]) -> None:
    known = replace(manifest.safecode, settings=ALL, calibration=CALIBRATION)
    own, other = (
        {arm.name for arm in ablations(known, judge)} for judge in (OWN, JudgeConfig(judges=judges))
    )
    assert own - other == {"safecode without image-aware verdict", "safecode without calibration"}


def test_a_run_is_what_answers_depend_on_and_no_path(tmp_path: Path) -> None:
    config = RunnerConfig(bundle=tmp_path / "a", arms=(PLAIN,), sampling=SamplingParams())
    same = [replace(config, bundle=tmp_path / "b"), replace(config, runtime=RuntimeConfig(threads=2))]
    other = [
        replace(config, system="Be kind."),
        replace(config, templates="others"),
        replace(config, sampling=SamplingParams(seed=1)),
    ]
    run = config.run_of(PLAIN, "d")
    assert {entry.run_of(PLAIN, "d") for entry in same} == {run}
    runs = [
        *(entry.run_of(PLAIN, "d") for entry in other),
        config.run_of(PLAIN, "e"),
        config.run_of(OURS, "d"),
    ]
    assert len({run, *runs}) == 6


def test_other_tools_make_the_same_bundle(manifest: Manifest) -> None:
    digest = bundle_digest(manifest)
    assert bundle_digest(replace(manifest, tools={"onnx": "9"})) == digest
    settings = replace(manifest.safecode, settings=replace(manifest.safecode.settings, alpha=0.9))
    assert bundle_digest(replace(manifest, safecode=settings)) != digest


def test_a_judge_is_part_of_the_run_and_its_secrets_are_not_shown(tmp_path: Path) -> None:
    judges = ("self", "endpoint:https://a.example/v1?key=secret#model")
    config = RunnerConfig(
        bundle=tmp_path, arms=(OURS,), sampling=SamplingParams(), judge=JudgeConfig(judges=judges)
    )
    assert config.judge_name == "max of self, endpoint:https://a.example/v1#model"
    plain = replace(config, judge=JudgeConfig())
    assert plain.run_of(OURS, "d") != config.run_of(OURS, "d")
    captions = replace(OURS, judge="self-caption")
    assert config.judge_of(captions).judges == ("self-caption",)


def test_a_file_of_verdicts_is_part_of_the_run_by_its_content(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path, p in zip(files, (0.5, 0.5, 0.75), strict=True):
        path.write_text(f'{{"key": "k", "p_unsafe": {p}}}\n')
    config = RunnerConfig(bundle=tmp_path, arms=(OURS,), sampling=SamplingParams())
    first, moved, other = (
        replace(config, judge=JudgeConfig(judges=(f"file:{path}",))).run_of(OURS, "d") for path in files
    )
    assert first == moved != other


def test_a_backend_is_named_with_its_engines(manifest: Manifest) -> None:
    entry = EngineEntry(
        flavour="tensorrt",
        version="10.0",
        compute_capabilities=("86",),
        precision="fp32",
        activations="fp32",
        attention="portable",
        capacity=64,
        graphs={},
    )
    built = [replace(manifest, engines=(replace(entry, capacity=size),)) for size in (64, 128)]
    assert backend_name("ort-cpu", built[0]) == backend_name("ort-cpu", built[1]) == "ort-cpu"
    assert len({backend_name("trt", each) for each in (manifest, *built)}) == 3


def test_an_item_s_seed_depends_on_nothing_else() -> None:
    sampling = SamplingParams(seed=3, temperature=0.5)
    first, again = item_seed(sampling, "a/b"), item_seed(sampling, "a/b")
    assert first == again and first.temperature == 0.5
    assert (
        len({first.seed, item_seed(sampling, "a/c").seed, item_seed(SamplingParams(seed=4), "a/b").seed}) == 3
    )
