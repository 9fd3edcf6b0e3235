"""Bundles with engines of the fake TensorRT, and the request that the backend's tests make of them.

They are what `safecode-trt build` writes, but for the engines themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safecode_trt.bundle import Bundle, file_entry, write_manifest
from safecode_trt.config import PAPER, RuntimeConfig, SamplingParams
from safecode_trt.contract import AttentionForm
from safecode_trt.engine import Engine
from safecode_trt.engine_entry import EngineEntry, EngineGraph, Flavour
from safecode_trt.manifest import DECODER, VISION_ENCODER
from safecode_trt.models import load_spec
from safecode_trt.policy import make_policy
from safecode_trt.policy.base import Policy
from safecode_trt.policy.plain import PLAIN
from safecode_trt.runtime.engine_choice import engine_spec
from safecode_trt.runtime.reply import Reply
from tests.fake_tensorrt import write_engine

__all__ = [
    "PICTURE",
    "REQUEST",
    "RTX",
    "SHORT",
    "TENSORRT",
    "VERSIONS",
    "EngineBundles",
    "add_engines",
    "ask",
    "opened",
    "policies",
]

PICTURE = Image.fromarray((np.indices((40, 60)).sum(0)[..., None] * [2, 3, 1] % 256).astype(np.uint8))
REQUEST = "can i touch it?"
SHORT = SamplingParams(max_new_tokens=16, ignore_eos=True)
TENSORRT: Flavour = "tensorrt"
RTX: Flavour = "tensorrt-rtx"

VERSIONS: dict[Flavour, str] = {TENSORRT: "10.16.1.11", RTX: "1.7.1.116"}
# By kind: the flavour, changes of `EngineConfig`, and settings of the decoder's plan.
KINDS: dict[str, tuple[Flavour, dict[str, Any], dict[str, Any]]] = {
    TENSORRT: (TENSORRT, {}, {}),
    RTX: (RTX, {}, {}),
    "short": (TENSORRT, {"max_prefill": 9}, {}),
    "single": (TENSORRT, {"max_rows": 1}, {}),
    "decomposed": (TENSORRT, {}, {"attention": "decomposed", "aliases": False}),
    "copying": (TENSORRT, {}, {"not_aliased": "present.1.key"}),
    "on host": (TENSORRT, {}, {"on_host": "write_indices"}),
}


class EngineBundles:
    """The fixture `engine_bundles`: makes what a test asks for by kind, and keeps it for the next one.

    They are in fp32, which the fake takes and TensorRT does not: there the tokens of two graphs are the same. The
    decomposed engine is in fp16, as on the devices that need it, and its bundle is portable.
    """

    def __init__(self, tiny: Bundle, checkpoint: Path, factory: pytest.TempPathFactory) -> None:
        self.tiny, self._checkpoint, self._factory = tiny, checkpoint, factory
        self._made: dict[str, Bundle] = {}

    def __getitem__(self, kind: str) -> Bundle:
        if kind not in self._made:
            flavour, changes, settings = KINDS[kind]
            folder = self._factory.mktemp("engines")
            source = self._half(folder) if kind == "decomposed" else self.tiny
            self._made[kind] = add_engines(source, folder, flavour, changes, **settings)
        return self._made[kind]

    def _half(self, folder: Path) -> Bundle:
        from safecode_trt.export import ExportConfig, export_bundle

        config = ExportConfig(precision="fp16", verify=False)
        return export_bundle(self._checkpoint, folder / "source", config=config)


def add_engines(
    source: Bundle,
    folder: Path,
    flavour: Flavour,
    changes: dict[str, Any] | None = None,
    attention: AttentionForm = "portable",
    **settings: Any,
) -> Bundle:
    """A copy of a bundle in `folder` with engines for compute capability 8.6; `settings` are of the decoder's plan."""
    from safecode_trt.export.build import decoder_model
    from safecode_trt.export.engine_config import EngineConfig
    from safecode_trt.export.engine_profiles import decoder_profiles, shapes, vision_profiles

    config = EngineConfig(flavour=flavour, max_picture=(96, 64), **(changes or {}))
    path = folder / "bundle"
    shutil.copytree(source.path, path)
    shutil.copytree(source.path / "onnx", folder / "plans")
    manifest, spec = source.manifest, load_spec(source.path)
    capacity = manifest.geometry.context_length
    graphs = {**manifest.graphs, DECODER: engine_spec(manifest.graphs[DECODER], capacity)}
    vision = manifest.graphs.get(VISION_ENCODER)
    profiles = {DECODER: decoder_profiles(spec, (vision, manifest.graphs[DECODER]), capacity, config)}
    if vision is not None:
        profiles[VISION_ENCODER] = vision_profiles(spec, vision, config)
    models = {name: folder / "plans" / Path(name).name for name in graphs}
    models[DECODER].write_bytes(decoder_model(source, attention)[0])
    entry = EngineEntry(
        flavour=flavour,
        version=VERSIONS[flavour],
        compute_capabilities=("86",),
        precision=manifest.precision,
        activations=manifest.activations,
        attention=attention,
        capacity=capacity,
        graphs={},
    )
    (path / entry.folder).mkdir(parents=True)
    files, built = dict(manifest.files), {}
    for name, model in models.items():
        file = f"{entry.folder}/{model.stem}.engine"
        plans = [shapes(graphs[name], profile) for profile in profiles[name]]
        write_engine(path / file, model, plans, **(settings if name == DECODER else {"memory": 1024}))
        files[file] = file_entry(path / file)
        built[name] = EngineGraph(file=file, profiles=profiles[name], seconds=0.0)
    write_manifest(path, replace(manifest, files=files, engines=(replace(entry, graphs=built),)))
    return Bundle.open(path)


@contextmanager
def opened(bundle: Bundle) -> Iterator[Engine]:
    config = RuntimeConfig(
        backend="trt" if bundle.manifest.engines else "ort-cpu", threads=1, check_hashes=False
    )
    with Engine.open(bundle.path, config=config) as engine:
        yield engine


def policies(bundle: Bundle) -> dict[str, Policy]:
    defaults = bundle.manifest.safecode
    cached = replace(PAPER, sigma=1.0, reference="cached")
    return {
        "plain": PLAIN,
        "safecode-paper": make_policy("safecode-paper", defaults),
        "cached": make_policy("safecode", defaults, settings=cached),
    }


def ask(engine: Engine, mode: str = "safecode-paper", sampling: SamplingParams = SHORT) -> Reply:
    return engine.generate(REQUEST, image=PICTURE, policy=policies(engine.bundle)[mode], sampling=sampling)
