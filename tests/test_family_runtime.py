"""Every family through the whole runtime: rows of one batch, shared prefixes, several pictures, steering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.engine import Engine
from safecode_trt.errors import PromptError
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Context, PixelNoise, Plan, PromptEdit
from safecode_trt.runtime import Message
from safecode_trt.runtime.contexts import row_prompt
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.prefill import plan_prefill, run_prefill
from safecode_trt.runtime.request import Request, as_messages, prepare
from safecode_trt.runtime.rows import RowPrompt, tail_of
from tests.cli_runner import call, fails
from tests.families import cases
from tests.family_checkpoints import FamilyCheckpoints

pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

REQUEST = "can i touch it?"
SHORT = SamplingParams(max_new_tokens=12, ignore_eos=True)
PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
JUDGED = Plan(
    contexts=(
        Context(name="real"),
        Context(name="noised", picture="noised", lifetime="steered"),
        Context(name="judge", prompt="judge", lifetime="prefill"),
    ),
    prompts={"judge": PromptEdit(template="{request} Is that safe here?")},
    noise=PixelNoise(sigma=0.5),
)


@pytest.fixture(scope="module", params=cases(), ids=lambda case: case.model_type)
def engine(request: pytest.FixtureRequest, made: FamilyCheckpoints) -> Iterator[Engine]:
    bundle = made.bundle(request.param)
    with Engine.open(bundle.path, config=RuntimeConfig(threads=1)) as opened:
        yield opened


def planned(engine: Engine, plan: Plan = JUDGED) -> tuple[Request, list[RowPrompt]]:
    """A request about the picture with its rows."""
    prepared = prepare(
        as_messages(REQUEST, 1),
        [PICTURE],
        plan=plan,
        prompts=engine.model.prompts,
        spec=engine.model.spec,
        capacity=engine.model.capacity,
        kept=lambda key: None,
    )
    features = engine.model.features(prepared, seed=0)
    rows = [
        row_prompt(
            prepared.tokens[context.prompt],
            keys,
            features[seen],
            prepared.layouts,
            engine.model.spec,
            engine.model.builder,
        )
        for context, seen, keys in zip(plan.contexts, prepared.feature_keys, prepared.keys, strict=True)
    ]
    return prepared, rows


def prefilled(engine: Engine, rows: list[RowPrompt], *, min_shared: int) -> tuple[np.ndarray, KVCache]:
    cache = KVCache(engine.model.session.allocate(len(rows)), rows=len(rows))
    plan = plan_prefill([row.keys for row in rows], [0] * len(rows), min_shared=min_shared)
    return run_prefill(plan, rows, engine.model.session, cache, engine.model.builder).copy(), cache


def test_rows_of_one_batch_equal_single_runs(engine: Engine) -> None:
    _, rows = planned(engine)
    together, cache = prefilled(engine, rows, min_shared=1 << 30)
    cache.require(1)
    step = (
        engine.model.session.decode(engine.model.builder.step(7, cache, tail_of(rows)), cache.memory)
        .logits[:, 0]
        .copy()
    )
    for number, row in enumerate(rows):
        alone, single = prefilled(engine, [row], min_shared=1 << 30)
        np.testing.assert_allclose(together[number], alone[0], atol=1e-5)
        single.require(1)
        logits = engine.model.session.decode(
            engine.model.builder.step(7, single, tail_of([row])), single.memory
        ).logits[:, 0]
        np.testing.assert_allclose(step[number], logits[0], atol=1e-5)


def test_a_shared_prefix_equals_a_full_prefill(engine: Engine) -> None:
    _, rows = planned(engine)
    full, _ = prefilled(engine, rows, min_shared=1 << 30)
    shared, _ = prefilled(engine, rows, min_shared=2)
    np.testing.assert_allclose(shared, full, atol=1e-4)


def test_the_noised_row_sees_another_picture(engine: Engine) -> None:
    _, rows = planned(engine)
    logits, _ = prefilled(engine, rows, min_shared=1 << 30)
    assert np.abs(logits[0] - logits[1]).max() > 1e-4


@pytest.mark.parametrize("reference", ["noised", "cached"])
def test_every_mode_answers(engine: Engine, reference: str) -> None:
    settings = replace(PAPER, reference=reference)  # type: ignore[arg-type]
    policy = make_policy("safecode", engine.bundle.manifest.safecode, settings=settings)
    for _ in range(2):  # the second time with a kept prefix
        reply = engine.generate(REQUEST, image=PICTURE, policy=policy, sampling=SHORT)
        assert len(reply.token_ids) == 12 and reply.verdict is not None
    assert len(engine.generate(REQUEST, image=PICTURE, sampling=SHORT, mode="plain").token_ids) == 12


def test_a_kept_prefix_is_only_for_pictures_of_the_same_grid(engine: Engine) -> None:
    """These two have the same number of image tokens in LLaVA-NeXT, and in few other families."""
    policy = make_policy(
        "safecode", engine.bundle.manifest.safecode, settings=replace(PAPER, reference="cached")
    )

    def reference_logits(size: tuple[int, int]) -> list[float | None]:
        reply = engine.generate(REQUEST, image=PICTURE.resize(size), policy=policy, sampling=SHORT)
        return [candidate.z_reference for candidate in reply.trace[0].candidates]

    engine.model.forget()
    first, second = (10, 16), (10, 121)
    reference_logits(first)
    warm = reference_logits(second)
    engine.model.forget()
    assert warm == pytest.approx(reference_logits(second), abs=1e-4)


def test_a_row_without_the_picture(engine: Engine) -> None:
    """Beside rows that show it, and with a system text in front; alone it has the same logits."""
    plan = Plan(
        contexts=(Context(name="real"), Context(name="blind", prompt="blind", lifetime="steered")),
        prompts={"blind": PromptEdit(system="Be brief.", pictures=False)},
    )
    prepared, rows = planned(engine, plan)
    tokens = prepared.tokens["blind"]
    assert engine.model.spec.image_token_id not in tokens
    logits, _ = prefilled(engine, rows, min_shared=1 << 30)
    assert np.abs(logits[0] - logits[1]).max() > 1e-4
    if not engine.model.spec.decoder_inputs("float32"):  # what a text alone has none of
        alone, _ = prefilled(engine, [engine.model.builder.text_row(tokens)], min_shared=1 << 30)
        np.testing.assert_allclose(logits[1], alone[0], atol=1e-5)


def test_no_picture_and_turns(engine: Engine) -> None:
    assert len(engine.generate(REQUEST, sampling=SHORT, mode="plain").token_ids) == 12
    turns = [
        Message(role="user", text="hello", images=1),
        Message(role="assistant", text="hi"),
        Message(role="user", text=REQUEST),
    ]
    assert len(engine.generate(turns, image=PICTURE, sampling=SHORT, mode="plain").token_ids) == 12


def test_several_pictures(engine: Engine) -> None:
    other = PICTURE.rotate(90, expand=True)
    if engine.model.spec.max_pictures == 1:
        with pytest.raises(PromptError, match=r"2 pictures were given, but \w+ takes at most 1"):
            engine.stream(REQUEST, image=[PICTURE, other], mode="plain")
        return
    first = engine.generate(REQUEST, image=[PICTURE, other], sampling=SHORT, mode="plain")
    second = engine.generate(REQUEST, image=[other, PICTURE], sampling=SHORT, mode="plain")
    assert len(first.token_ids) == len(second.token_ids) == 12


@pytest.mark.parametrize(("model_type", "at_most"), [("instructblip", 1), ("qwen2_vl", None)])
def test_several_pictures_on_the_command_line(
    made: FamilyCheckpoints, tmp_path: Path, model_type: str, at_most: int | None
) -> None:
    case = next(each for each in cases() if each.model_type == model_type)
    bundle, images = made.bundle(case).path, []
    for number, picture in enumerate((PICTURE, PICTURE.rotate(90, expand=True))):
        path = tmp_path / f"{number}.png"
        picture.save(path)
        images += ["--image", path]
    asked = call("run", bundle, *images, "--max-new-tokens", 4, REQUEST)
    lines = f"{REQUEST}\n/image {images[-1]}\n{REQUEST}\n"
    talked = call("chat", bundle, *images[:2], "--max-new-tokens", 4, text=lines)
    assert talked.exit_code == 0, talked.output
    if at_most == 1:
        fails(asked, 1, f"2 pictures were given, but {model_type} takes at most 1")
        assert f"error: 2 pictures were given, but {model_type} takes at most 1" in talked.stderr
    else:
        assert asked.exit_code == 0, asked.output
        assert "error" not in talked.stderr and talked.stderr.count("tokens, first") == 2
