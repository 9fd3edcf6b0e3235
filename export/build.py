"""Makes TensorRT engines of a bundle's graphs and enters them in its manifest; both at once or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from safecode_trt import atomic
from safecode_trt.bundle import Bundle, file_entry, write_manifest
from safecode_trt.contract import AttentionForm, GraphSpec, activation_dtype
from safecode_trt.engine_entry import ENGINES, EngineEntry, EngineGraph, EngineProfile
from safecode_trt.errors import BackendError, BundleError
from safecode_trt.export.engine_builder import TensorRT
from safecode_trt.export.engine_checks import (
    require_buildable,
    require_memory,
    require_timing_cache,
    targets,
    why_not_portable,
)
from safecode_trt.export.engine_config import EngineConfig
from safecode_trt.export.engine_profiles import decoder_profiles, shapes, vision_profiles
from safecode_trt.manifest import DECODER, VISION_ENCODER, Manifest
from safecode_trt.models import load_spec
from safecode_trt.progress import Note, Progress, no_note, no_progress
from safecode_trt.runtime.engine_choice import engine_spec

__all__ = ["build_engines", "decoder_model"]


NAMES = {VISION_ENCODER: "vision_encoder", DECODER: "decoder"}


def build_engines(
    path: Path, config: EngineConfig, *, progress: Progress | None = None, note: Note | None = None
) -> EngineEntry:
    """Builds the bundle's graphs for what `config` names; engines for the same are replaced.

    `note` is told where the decoder is built in another form than the bundle's, and why, and what could not be kept.

    Raises:
        BundleError: the bundle is not whole, or cannot be written.
        BackendError: TensorRT is absent, or does not build these graphs.
        ConfigError: a setting does not fit.
    """
    bundle, library = Bundle.open(path), TensorRT.load(config.flavour)
    manifest, report = bundle.manifest, progress or no_progress
    note = note or no_note
    require_buildable(manifest, library.flavour, library.version)
    config = replace(config, compute_capabilities=targets(config))
    require_memory(bundle, config)
    require_timing_cache(config)
    profiles = _profiles(bundle, config)
    attention = _attention(manifest, library, note)
    entry = EngineEntry(
        flavour=library.flavour,
        version=library.version,
        compute_capabilities=config.compute_capabilities,
        precision=manifest.precision,
        activations=manifest.activations,
        attention=attention,
        capacity=manifest.geometry.context_length,
        graphs={},
    )
    with _new_engines(bundle.path, entry.folder) as folder:
        built = {}
        for graph in manifest.graphs:
            name, started = NAMES[graph], time.perf_counter()
            model, spec = _model(bundle, graph, attention)
            engine = library.build(
                model,
                bundle.file(graph),
                [shapes(spec, profile) for profile in profiles[graph]],
                config,
                partial(_tell, report, name),
                note,
            )
            (folder / f"{name}.engine").write_bytes(engine)
            built[graph] = EngineGraph(
                file=f"{entry.folder}/{name}.engine",
                profiles=profiles[graph],
                seconds=round(time.perf_counter() - started, 1),
            )
        entry = replace(entry, graphs=built)
        _enter(bundle.path, folder, entry)
    return entry


def _tell(report: Progress, name: str, phase: str, done: int, total: int) -> None:
    report(f"{name}: {phase}", done, total)


def _attention(manifest: Manifest, library: TensorRT, note: Note) -> AttentionForm:
    """The form to build the decoder in: the bundle's, or the decomposed one if that is not taken."""
    if manifest.attention == "decomposed":
        return "decomposed"
    reason = why_not_portable(manifest, library.flavour, library.version)
    if reason is None:
        return "portable"
    note(f"the decoder is built in the decomposed form: {reason}")
    return "decomposed"


def _model(bundle: Bundle, graph: str, attention: AttentionForm) -> tuple[bytes, GraphSpec]:
    """A graph as TensorRT gets it, with its inputs and outputs; the weights stay where they are."""
    if graph == DECODER:
        return decoder_model(bundle, attention)
    return bundle.file(graph).read_bytes(), bundle.manifest.graphs[graph]


def decoder_model(bundle: Bundle, attention: AttentionForm) -> tuple[bytes, GraphSpec]:
    """The decoder as TensorRT gets it, in a form that is the bundle's or is made of it.

    Raises:
        BackendError: onnx-ir is not installed.
    """
    try:
        import onnx_ir as ir
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed", fix="pip install onnx-ir") from error
    from safecode_trt.export.decompose import decompose
    from safecode_trt.export.engine_graph import engine_graph

    manifest = bundle.manifest
    model = ir.load(bundle.file(DECODER))
    if attention != manifest.attention:
        decompose(model, manifest.geometry, activation_dtype(manifest.precision, manifest.activations))
    spec = engine_spec(manifest.graphs[DECODER], manifest.geometry.context_length)
    return engine_graph(model, spec), spec


def _profiles(bundle: Bundle, config: EngineConfig) -> Mapping[str, tuple[EngineProfile, ...]]:
    manifest = bundle.manifest
    spec = load_spec(bundle.path, max_tiles=manifest.max_tiles)
    vision, decoder = manifest.graphs.get(VISION_ENCODER), manifest.graphs[DECODER]
    profiles = {} if vision is None else {VISION_ENCODER: vision_profiles(spec, vision, config)}
    return {
        **profiles,
        DECODER: decoder_profiles(spec, (vision, decoder), manifest.geometry.context_length, config),
    }


@contextmanager
def _new_engines(bundle: Path, target: str) -> Iterator[Path]:
    """Yields a folder next to the engines' to build into; nothing of it is left if they are not entered."""
    engines = bundle / ENGINES
    existed = engines.exists()
    try:
        engines.mkdir(exist_ok=True)
        folder = atomic.temporary_path(bundle / target)
        folder.mkdir()
    except OSError as error:
        raise BundleError(f"{engines} cannot be written: {error.strerror or error}") from error
    try:
        yield folder
    except OSError as error:
        raise BundleError(f"{bundle / target} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(engines.iterdir()):
            engines.rmdir()


def _enter(path: Path, folder: Path, entry: EngineEntry) -> None:
    """Moves the built engines to their place and names them in the manifest.

    Engines that are replaced leave the manifest first: at every moment it names only files that are there.
    """
    manifest, target = Bundle.open(path, check_hashes=False).manifest, path / entry.folder
    before = replace(
        manifest,
        engines=tuple(engine for engine in manifest.engines if engine.folder != entry.folder),
        files={name: x for name, x in manifest.files.items() if not name.startswith(f"{entry.folder}/")},
    )
    new = {graph.file: file_entry(folder / Path(graph.file).name) for graph in entry.graphs.values()}
    after = replace(before, engines=(*before.engines, entry), files={**before.files, **new})
    old = folder.with_name(f"{folder.name}-old")
    try:
        write_manifest(path, before)
        if target.exists():
            target.rename(old)
        folder.rename(target)
        write_manifest(path, after)
    except BaseException:
        if not folder.exists():
            shutil.rmtree(target)
        if old.exists():
            old.rename(target)
        write_manifest(path, manifest)
        raise
    shutil.rmtree(old, ignore_errors=True)
