"""Bundles with engines of the fake TensorRT: what `safecode-trt build` writes, but for the engines themselves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safecode_trt.bundle import Bundle, file_entry, write_manifest
from safecode_trt.manifest import DECODER, VISION_ENCODER, EngineEntry, EngineGraph, Flavour
from safecode_trt.models import load_spec
from safecode_trt.runtime.engines import engine_spec
from tests.fake_tensorrt import write_engine

__all__ = ["VERSIONS", "add_engines"]

VERSIONS: dict[Flavour, str] = {"tensorrt": "10.16.1.11", "tensorrt-rtx": "1.7.1.116"}


def add_engines(
    source: Bundle, folder: Path, flavour: Flavour, *, config: Any = None, **settings: Any
) -> Bundle:
    """A copy of a bundle in `folder` with engines for compute capability 8.6; `settings` are of the decoder's plan."""
    from safecode_trt.export.engine_config import EngineConfig
    from safecode_trt.export.engine_graph import engine_graph
    from safecode_trt.export.engine_profiles import decoder_profiles, shapes, vision_profiles

    config = config or EngineConfig(flavour=flavour, max_picture=(96, 64))
    path = folder / "bundle"
    shutil.copytree(source.path, path)
    shutil.copytree(source.path / "onnx", folder / "plans")
    manifest, spec = source.manifest, load_spec(source.path)
    capacity = manifest.geometry.context_length
    graphs = {
        VISION_ENCODER: manifest.graphs[VISION_ENCODER],
        DECODER: engine_spec(manifest.graphs[DECODER], capacity),
    }
    profiles = {
        VISION_ENCODER: vision_profiles(spec, graphs[VISION_ENCODER], config),
        DECODER: decoder_profiles(spec, (graphs[VISION_ENCODER], manifest.graphs[DECODER]), capacity, config),
    }
    models = {name: folder / "plans" / Path(name).name for name in graphs}
    models[DECODER].write_bytes(engine_graph(source.file(DECODER), graphs[DECODER]))
    entry = EngineEntry(
        flavour=flavour,
        version=VERSIONS[flavour],
        compute_capabilities=("86",),
        precision=manifest.precision,
        activations=manifest.activations,
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
