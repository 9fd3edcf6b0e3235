"""What the decoder shows and takes besides logits: positions of a row, hidden states and taps, against transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.contract import ATTENTION_FORMS, AttentionForm, Precision, Tap
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError, ConfigError
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.model import Model
from safecode_trt.runtime.session import DecoderFeeds, DecoderOutputs
from tests.cli_runner import call, fails
from tests.engine_bundle import TENSORRT, add_engines
from tests.fake_tensorrt import FakeTensorRT
from tests.test_engine_builds import built_for_real

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from dataclasses import replace  # noqa: E402

from safecode_trt.export import ExportConfig, export_bundle  # noqa: E402

TAPS = (
    Tap(place="attention", layer=0),
    Tap(place="mlp", layer=0),
    Tap(place="heads", layer=1),
    Tap(place="mlp", layer=1),
)
WANTED = ("hidden", *(tap.read for tap in TAPS))
FAMILIES = ("llama", "mistral", "qwen2")
LENGTHS = (9, 6)
Array = NDArray[np.float32]
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A random text-only checkpoint of a family."""

    @functools.cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family) / "checkpoint"
        write_checkpoint(folder, family, dtype="F32")
        return folder

    return make


def export(
    made: Made,
    family: str,
    folder: Path,
    *,
    attention: AttentionForm = "portable",
    **config: Any,
) -> Bundle:
    settings = {"precision": "fp32", "hidden": True, "taps": TAPS, **config}
    exported = ExportConfig(verify=False, context_length=64, attention=attention, **settings)
    return export_bundle(made(family), folder / "bundle", config=exported)


def prompts(vocabulary: int) -> list[NDArray[np.int64]]:
    draw = np.random.Generator(np.random.PCG64(7))
    return [draw.integers(4, vocabulary, length) for length in LENGTHS]


def vectors(model: Model, tokens: int, seed: int) -> dict[str, Array]:
    """What is added at every tap, other values in each row: (C, T, width)."""
    draw = np.random.Generator(np.random.PCG64(seed))
    widths = {tap.steer: tap.width(model.manifest.geometry) for tap in TAPS}
    return {
        name: draw.standard_normal((len(LENGTHS), tokens, width), dtype=np.float32) * 0.5
        for name, width in widths.items()
    }


def run(
    model: Model, ids: list[NDArray[np.int64]], added: Mapping[str, Array], step: Mapping[str, Array]
) -> tuple[DecoderOutputs, DecoderOutputs]:
    """A prefill of both rows whose logits are wanted at two positions, and a step of one token, copied."""
    cache = KVCache(model.session.allocate(len(ids)), rows=len(ids))
    counts = np.array([len(row) for row in ids])
    cache.require(int(counts.max()) + 1)
    positions = np.stack([counts - 1, counts // 2], 1)
    feeds = model.builder.feeds(
        [model.builder.text_row(row) for row in ids], counts, cache, logit_positions=positions
    )
    first = copied(model, replace(feeds, token_inputs=added), cache)
    cache.advance(counts)
    feeds = model.builder.step(5, cache)
    return first, copied(model, replace(feeds, token_inputs=step), cache)


def copied(model: Model, feeds: DecoderFeeds, cache: KVCache) -> DecoderOutputs:
    outputs = model.session.decode(feeds, cache.memory, wanted=WANTED)
    others = {name: value.copy() for name, value in outputs.others.items()}
    return DecoderOutputs(logits=outputs.logits.copy(), others=others)


@contextmanager
def hooked(
    theirs: Any, added: Mapping[str, Array], row: int, length: int, seen: dict[str, Array]
) -> Iterator[None]:
    """transformers' layers with the row's vectors added at the taps; `seen` gets the values before that."""

    def values(tap: Tap) -> Any:
        return torch.from_numpy(added[tap.steer][row : row + 1, :length])

    def after(tap: Tap) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> Any:
            seen[tap.read] = output.detach().numpy()[0]
            return output + values(tap)

        return hook

    def before(tap: Tap) -> Any:
        def hook(module: Any, arguments: Any) -> Any:
            seen[tap.read] = arguments[0].detach().numpy()[0]
            return (arguments[0] + values(tap),)

        return hook

    handles = []
    for tap in TAPS:
        layer = theirs.model.layers[tap.layer]
        if tap.place == "heads":
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(before(tap)))
        else:
            module = layer.self_attn.o_proj if tap.place == "attention" else layer.mlp
            handles.append(module.register_forward_hook(after(tap)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("attention", ATTENTION_FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_steered_places_are_those_of_transformers(
    family: str, attention: AttentionForm, made: Made, tmp_path: Path
) -> None:
    bundle = export(made, family, tmp_path, attention=attention)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made(family), dtype=torch.float32).eval()
    with Model.open(bundle.path, config=RuntimeConfig(threads=1)) as model:
        ids = prompts(model.manifest.geometry.vocab_size)
        added, step = vectors(model, max(LENGTHS), 1), vectors(model, 1, 2)
        prefill, decoded = run(model, ids, added, step)
    for row, prompt in enumerate(ids):
        length, seen = len(prompt), dict[str, Array]()
        whole = {
            name: np.concatenate([value[:, :length], step[name]], axis=1) for name, value in added.items()
        }
        with torch.no_grad(), hooked(theirs, whole, row, length + 1, seen):
            out = theirs(torch.tensor([[*prompt.tolist(), 5]]), output_hidden_states=True)
        logits, hidden = out.logits[0].numpy(), out.hidden_states[-1][0].numpy()
        np.testing.assert_allclose(prefill.logits[row, 0], logits[length - 1], atol=1e-4)
        np.testing.assert_allclose(prefill.logits[row, 1], logits[length // 2], atol=1e-4)
        np.testing.assert_allclose(decoded.logits[row, 0], logits[length], atol=1e-4)
        np.testing.assert_allclose(prefill.others["hidden"][row, :length], hidden[:length], atol=1e-4)
        np.testing.assert_allclose(decoded.others["hidden"][row, 0], hidden[length], atol=1e-4)
        for tap in TAPS:
            np.testing.assert_allclose(
                prefill.others[tap.read][row, :length], seen[tap.read][:length], atol=1e-4
            )
            np.testing.assert_allclose(decoded.others[tap.read][row, 0], seen[tap.read][length], atol=1e-4)
        assert np.abs(logits[length]).max() > 0.01


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_taps_that_add_nothing_change_no_bit(precision: Precision, made: Made, tmp_path: Path) -> None:
    """Neither where zeros are given nor where nothing is, against a decoder without taps and hidden states."""
    tapped = export(made, "llama", tmp_path, precision=precision)
    plain = export(made, "llama", tmp_path / "plain", precision=precision, hidden=False, taps=())
    found: list[tuple[Array, Array]] = []
    with Model.open(tapped.path, config=RuntimeConfig(threads=1)) as model:
        ids = prompts(model.manifest.geometry.vocab_size)
        zeros = ({name: x * 0 for name, x in vectors(model, n, 1).items()} for n in (max(LENGTHS), 1))
        for added, step in (tuple(zeros), ({}, {})):
            found.append(tuple(each.logits for each in run(model, ids, added, step)))  # type: ignore[arg-type]
        # A steered reply leaves nothing for the next one, whose steps have the same shapes.
        run(model, ids, vectors(model, max(LENGTHS), 1), vectors(model, 1, 2))
        found.append(tuple(each.logits for each in run(model, ids, {}, {})))  # type: ignore[arg-type]
    with Model.open(plain.path, config=RuntimeConfig(threads=1)) as model:
        cache = KVCache(model.session.allocate(2), rows=2)
        counts = np.array(LENGTHS)
        cache.require(int(counts.max()) + 1)
        positions = np.stack([counts - 1, counts // 2], 1)
        rows = [model.builder.text_row(row) for row in ids]
        feeds = model.builder.feeds(rows, counts, cache, logit_positions=positions)
        first = model.session.decode(feeds, cache.memory).logits.copy()
        cache.advance(counts)
        second = model.session.decode(model.builder.step(5, cache), cache.memory).logits.copy()
    for prefill, decoded in found:
        np.testing.assert_array_equal(prefill, first)
        np.testing.assert_array_equal(decoded, second)


def test_what_the_bundle_lacks_is_told(made: Made, tmp_path: Path) -> None:
    bundle = export(made, "llama", tmp_path, hidden=False, taps=TAPS[:1])
    with Model.open(bundle.path, config=RuntimeConfig(threads=1)) as model:
        cache = KVCache(model.session.allocate(1), rows=1)
        cache.require(1)
        with pytest.raises(BackendError, match=r"no output hidden; fix: export with --hidden"):
            model.session.decode(model.builder.step(5, cache), cache.memory, wanted=("hidden",))


def test_the_program_exports_and_shows_them(made: Made, tmp_path: Path) -> None:
    output, checkpoint = tmp_path / "b", made("llama")
    base = ("export", "--model", checkpoint, "--output", output, "--context-length", 64, "--no-verify")
    fails(call(*base, "--taps", "mlp:9"), 2, "--taps mlp:9 is none of the layers 0 to 1")
    fails(call(*base, "--taps", "nose:1"), 2, "--taps must be PLACE:LAYER")
    fails(call(*base, "--taps", "mlp:1", "--taps", "mlp:1"), 2, "--taps must name each place once")
    done = call(*base, "--hidden", "--taps", "mlp:1", "--taps", "heads:0")
    assert done.exit_code == 0, done.output
    shown = call("inspect", output).stdout
    assert "hidden" in shown and "mlp:1" in shown and "heads:0" in shown
    assert call("verify", output).exit_code == 0


def test_a_tap_is_checked_in_the_manifest(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each place once"):
        ExportConfig(taps=(TAPS[0], TAPS[0]))


@pytest.mark.parametrize("changes", [{}, {"max_prefill": 4}], ids=["whole", "in parts"])
def test_engines_do_the_same(
    changes: dict[str, Any],
    made: Made,
    packages: dict[Flavour, FakeTensorRT],
    tmp_path: Path,
) -> None:
    """On the fake GPU, whose executions go to ONNX Runtime; a prefill in parts has positions in two of them."""
    bundle = export(made, "llama", tmp_path)
    engines = add_engines(bundle, tmp_path / "engines", TENSORRT, changes)
    found = []
    for path, backend in ((bundle.path, "ort-cpu"), (engines.path, "trt")):
        config = RuntimeConfig(backend=backend, threads=1)  # type: ignore[arg-type]
        with Model.open(path, config=config) as model:
            ids = prompts(model.manifest.geometry.vocab_size)
            found += [run(model, ids, vectors(model, max(LENGTHS), 1), vectors(model, 1, 2))]
            found += [run(model, ids, {}, {})]
    for here, there in zip(found[:2], found[2:], strict=True):
        for wanted, got in zip(here, there, strict=True):
            np.testing.assert_allclose(got.logits, wanted.logits, atol=1e-5)
            for name in WANTED:
                for row, length in enumerate(LENGTHS):
                    shown = slice(min(length, wanted.others[name].shape[1]))  # what is padded is not defined
                    np.testing.assert_allclose(
                        got.others[name][row, shown], wanted.others[name][row, shown], atol=1e-5
                    )


@pytest.mark.trt
@pytest.mark.parametrize("attention", ATTENTION_FORMS)
def test_engines_are_built(attention: AttentionForm, made: Made, tmp_path: Path) -> None:
    bundle = export(made, "llama", tmp_path, precision="fp16", attention=attention)
    built_for_real(bundle.path)
