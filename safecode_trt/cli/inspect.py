"""safecode-trt inspect: what a bundle holds."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import PATH, as_json
from safecode_trt.cli.verify import describe
from safecode_trt.contract import GraphSpec, TensorSpec
from safecode_trt.records import to_dict

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

    from safecode_trt.calibration import Calibration
    from safecode_trt.engine_entry import EngineEntry
    from safecode_trt.manifest import Manifest, Quantization

__all__ = ["command"]


@click.command("inspect", short_help="Show what a bundle holds.")
@click.argument("bundle", type=PATH)
@as_json
def command(bundle: Path, as_json: bool) -> None:
    """Show the files, graphs, sizes and settings of BUNDLE. Hashes are left to `verify`.

    \b
    Example:
      safecode-trt inspect build/demo-bundle
    """
    from safecode_trt.bundle import Bundle

    manifest = Bundle.open(bundle, check_hashes=False).manifest
    if as_json:
        console.emit_json({"bundle": str(bundle), **to_dict(manifest)})
        return
    output = console.stdout()
    output.print(_tree(bundle, manifest))
    output.print(_facts(manifest))
    for name, graph in manifest.graphs.items():
        output.print(_graph_table(name, graph))
    output.print(describe(manifest.parity), soft_wrap=True)


def _tree(bundle: Path, manifest: Manifest) -> Tree:
    from rich.tree import Tree

    total = console.size(sum(file.bytes for file in manifest.files.values()))
    root = Tree(f"{bundle}  {total}")
    folders = {"": root}
    for name in sorted(manifest.files):
        folder, _, leaf = name.rpartition("/")
        if folder not in folders:
            folders[folder] = root.add(f"{folder}/")
        folders[folder].add(console.printable(f"{leaf}  {console.size(manifest.files[name].bytes)}"))
    return root


def _facts(manifest: Manifest) -> Table:
    from rich.table import Table

    geometry, safecode = manifest.geometry, manifest.safecode
    facts = {
        "model type": manifest.model_type,
        "weights": f"{manifest.precision}, {manifest.activations} activations, {manifest.attention} attention; "
        + ("no vision encoder" if manifest.text_only else f"vision encoder {manifest.vision_precision}"),
        "quantised": _quantization(manifest),
        "engines": "\n".join(map(_engine, manifest.engines)) or "none",
        "decoder": f"{geometry.num_hidden_layers} layers, {geometry.num_attention_heads} heads "
        f"({geometry.num_key_value_heads} for keys and values) of {geometry.head_dim}, "
        f"hidden {geometry.hidden_size}, vocabulary {geometry.vocab_size}",
        "outputs": ", ".join(["logits", *["hidden"] * manifest.hidden, *map(str, manifest.taps)]),
        "context": f"{geometry.context_length} tokens"
        + ("" if manifest.text_only else f", {geometry.image_seq_len} for the reference picture")
        + ("" if manifest.max_tiles is None else f", at most {manifest.max_tiles} tiles in addition to it"),
        "safecode": ", ".join(
            f"{key} {json.dumps(value)}"
            for key, value in to_dict(safecode.settings).items()
            if key != "release"
        ),
        "calibration": _calibration(safecode.calibration),
        "refusals": " | ".join(safecode.refusal_phrases),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        "checkpoint": _checkpoint(manifest),
    }
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, console.printable(value))
    return table


def _checkpoint(manifest: Manifest) -> str:
    source = manifest.source
    named = "" if source is None else f"{source.name}@{source.revision}, commit {source.commit}, "
    return f"{named}SHA-256 {manifest.source_sha256}"


def _calibration(found: Calibration | None) -> str:
    if found is None:
        return "none"
    return (
        f"temperature {found.temperature:.4g}, threshold {found.threshold:.4g}, judge {found.judge}, from "
        f"{found.items} items ({found.unsafe_items} unsafe, SHA-256 {found.items_sha256[:16]}...): calibration error "
        f"{found.before.calibration_error:.4f} before and {found.after.calibration_error:.4f} after, "
        f"{100 * found.before.accuracy:.1f} % and {100 * found.after.accuracy:.1f} % right"
    )


def _quantization(manifest: Manifest) -> str:
    """Which kinds of quantised tensors there are, how many of each, and what they lost."""
    kinds: dict[Quantization, list[float]] = defaultdict(list)
    for how in manifest.quantization.values():
        kinds[replace(how, error=None)].append(float("nan") if how.error is None else how.error)
    lines = []
    for how, errors in kinds.items():
        size = "one scale per output" if how.block_size is None else f"blocks of {how.block_size}"
        codes = "symmetric" if how.symmetric else "asymmetric"
        lost = sum(errors) / len(errors)
        mean = "" if lost != lost else f", mean relative error {lost:.3g}"
        count = "1 tensor" if len(errors) == 1 else f"{len(errors)} tensors"
        lines.append(f"{count}: {how.bits} bits, {size}, {codes}, {how.method}{mean}")
    return "\n".join(lines) or "nothing"


def _engine(engine: EngineEntry) -> str:
    """For which TensorRT and GPUs, and each profile's ranges as least-largest."""
    lines = [
        f"{engine.flavour} {engine.version}, compute capability {', '.join(engine.compute_capabilities)}, "
        f"{engine.precision} with {engine.activations} activations, {engine.attention} attention, "
        f"cache of {engine.capacity}"
    ]
    for graph in engine.graphs.values():
        lines.append(f"  {graph.file}, {graph.seconds:g} s")
        for profile in graph.profiles:
            ranges = (f"{axis} {x.min}-{x.max}" for axis, x in sorted(profile.axes.items()))
            lines.append(f"    {profile.name}: {', '.join(ranges)}")
    return "\n".join(lines)


def _graph_table(name: str, graph: GraphSpec) -> Table:
    from rich.table import Table

    table = Table(title=console.printable(name), title_justify="left")
    for column in ("", "name", "type", "shape"):
        table.add_column(column)
    for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for tensor in _without_layers(tensors):
            shape = ", ".join(map(str, tensor.shape))
            table.add_row(direction, console.printable(tensor.name), tensor.dtype, f"({shape})")
    return table


def _without_layers(tensors: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """One line for the caches of all layers."""
    kept = []
    for tensor in tensors:
        head, dot, rest = tensor.name.partition(".")
        index, _, part = rest.partition(".")
        if not dot or not index.isdigit():
            kept.append(tensor)
        elif index == "0":
            kept.append(TensorSpec(name=f"{head}.*.{part}", dtype=tensor.dtype, shape=tensor.shape))
    return kept
