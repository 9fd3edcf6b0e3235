"""Makes a bundle of a checkpoint. The only folder that may import torch, transformers and onnx."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from safecode_trt.bundle import Bundle, file_entry, new_bundle, require_free, write_manifest
from safecode_trt.config import RuntimeConfig
from safecode_trt.contract import Geometry, Tap, activation_dtype, decoder_graph, vision_dtype
from safecode_trt.errors import ConfigError
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.export_config import ExportConfig, WeightConfig
from safecode_trt.manifest import DECODER, EMBEDDINGS, REFERENCE, VISION_ENCODER, Manifest
from safecode_trt.models import load_spec
from safecode_trt.progress import Progress, no_progress
from safecode_trt.runtime.session import Session

__all__ = ["ExportConfig", "WeightConfig", "export_bundle"]

"""Called with the name of a step, the parts done, and the parts in all."""


def export_bundle(
    model: str | Path, output: Path, *, config: ExportConfig | None = None, progress: Progress | None = None
) -> Bundle:
    """Makes the bundle `output` of a checkpoint, whole or not at all.

    `model` is a folder, or as a text the name of a model on the hub: `owner/name` or `owner/name@revision`.

    Raises:
        CheckpointError: the checkpoint cannot be found or is incomplete, is not supported, or the graphs do not do
            what it does.
        ConfigError: a setting does not fit the model.
        BundleError: the output exists or cannot be written.
    """
    from safecode_trt.export import package
    from safecode_trt.export.defaults import safecode_defaults
    from safecode_trt.export.hub import find_checkpoint

    config, report = config or ExportConfig(), progress or no_progress
    if config.precision == "bf16" and config.verify:
        raise ConfigError(
            "bf16 cannot be compared with transformers on the CPU, which has no kernels for it",
            field="precision",
            fix="pass --no-verify, and run the bundle on a GPU backend",
        )
    require_free(output, overwrite=config.overwrite)
    model, source = find_checkpoint(model, offline=config.offline, report=report)
    # What follows imports torch, which takes seconds; a wrong name is told before.
    from safecode_trt.export.decoder import write_decoder
    from safecode_trt.export.embeddings import write_embeddings
    from safecode_trt.export.parity import verify_session
    from safecode_trt.export.reference_features import write_reference
    from safecode_trt.export.shape_nodes import shape_nodes
    from safecode_trt.export.vision_encoder import write_vision_encoder
    from safecode_trt.runtime.prompt import PromptBuilder

    spec = load_spec(model, max_tiles=config.max_tiles)
    geometry = package.geometry(spec, config)
    precision, activations = config.precision, config.activation_precision
    own = spec.decoder_inputs(activation_dtype(precision, activations))
    graphs = {
        DECODER: decoder_graph(
            geometry, precision, own, activations=activations, hidden=config.hidden, taps=config.taps
        )
    }
    _check_taps(config.taps, geometry)
    if not spec.text_only:
        graphs = {VISION_ENCODER: spec.vision_graph(vision_dtype(precision, activations)), **graphs}
    elif config.vision_precision is not None:
        raise ConfigError(
            f"is for a vision encoder, and {spec.model_type} has none",
            field="vision_precision",
            fix="leave it unset",
        )
    tokens, defaults = package.special_tokens(model, spec), safecode_defaults(model, spec)
    checkpoint = Checkpoint(model, spec.renames, spec.joins)
    with new_bundle(output, overwrite=config.overwrite) as folder:
        report("settings", 0, 1)
        package.copy_settings(model, folder, spec)
        digest = checkpoint.sha256(package.settings_files(model, spec))
        report("settings", 1, 1)

        (folder / DECODER).parent.mkdir()
        quantization = dict(
            write_decoder(
                checkpoint,
                spec,
                geometry,
                folder / DECODER,
                precision=precision,
                attention=config.attention,
                weights=config.weights,
                activations=activations,
                hidden=config.hidden,
                taps=config.taps,
                progress=report,
            )
        )
        report("embeddings", 0, 1)
        write_embeddings(checkpoint, spec, folder / EMBEDDINGS)
        report("embeddings", 1, 1)

        if not spec.text_only:
            report("vision encoder", 0, 1)
            quantization |= write_vision_encoder(
                checkpoint,
                spec,
                graphs[VISION_ENCODER],
                folder / VISION_ENCODER,
                precision=config.vision_weights,
            )
            report("vision encoder", 1, 1)

        manifest = Manifest(
            model_type=spec.model_type,
            precision=precision,
            activations=activations,
            vision_precision=None if spec.text_only else config.vision_weights,
            attention=config.attention,
            max_tiles=config.max_tiles,
            geometry=geometry,
            graphs=graphs,
            special_tokens=tokens,
            safecode=defaults,
            parity=None,
            quantization=quantization,
            tools=package.tool_versions(),
            source=source,
            source_sha256=digest,
            files=package.bundle_files(folder),
            hidden=config.hidden,
            taps=config.taps,
            shape_nodes={name: shape_nodes(folder / name) for name in graphs},
        )
        bundle = Bundle(path=folder, manifest=manifest)
        with closing(_open(bundle)) as session:
            if not spec.text_only:
                report("reference picture", 0, 1)
                write_reference(session, spec, PromptBuilder(folder, spec), defaults, folder / REFERENCE)
                files = {**manifest.files, REFERENCE: file_entry(folder / REFERENCE)}
                manifest = replace(manifest, files=files)
                report("reference picture", 1, 1)
            parity = verify_session(session, bundle, model, report) if config.verify else None
        write_manifest(folder, replace(manifest, parity=parity))
    return Bundle.open(output, check_hashes=False)


def _open(bundle: Bundle) -> Session:
    """The new bundle on the CPU; of a bf16 bundle only the vision encoder, because its decoder needs a GPU."""
    from safecode_trt.runtime.backends import open_session
    from safecode_trt.runtime.backends.ort import OrtSession

    if bundle.manifest.precision == "bf16":
        return OrtSession(bundle, decoder=False)
    return open_session(bundle, RuntimeConfig(keep_graphs=False))


def _check_taps(taps: tuple[Tap, ...], geometry: Geometry) -> None:
    for tap in taps:
        if tap.layer >= geometry.num_hidden_layers:
            raise ConfigError(
                f"{tap.place}:{tap.layer} is none of the layers 0 to {geometry.num_hidden_layers - 1}",
                field="taps",
            )
