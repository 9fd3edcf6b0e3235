"""What the decoder's contract costs where its parts are not used, as ratios on this machine.

Compared are bare decoders with the same random weights in int4: this one with one logit position, the same with the
head of schema 5 (one position a row, no axis for it), and one with hidden states and four taps that nobody uses.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from bare_decoder import BareDecoder, portable_feeds
from bench_decode import CONTEXT, FAMILY
from make_random_checkpoint import make_config, write_checkpoint
from random_families import family
from safecode_trt.bench.bench_report import machine_line
from safecode_trt.bench.timing import Case, Rounds, interleaved
from safecode_trt.bundle import Bundle
from safecode_trt.contract import Tap
from safecode_trt.export import ExportConfig, export_bundle
from safecode_trt.export.checkpoint import Checkpoint
from safecode_trt.export.decoder import write_decoder
from safecode_trt.machine import this_machine
from safecode_trt.manifest import DECODER
from safecode_trt.models import load_spec
from safecode_trt.runtime.backends.host_cache import capacity_for
from safecode_trt.runtime.backends.ort import open_graph
from safecode_trt.text_table import TextTable, markdown

VISIBLE, PROMPT = 256, 256
MOST = 1.01
PAIRS = {
    "Q = 1 against the head of schema 5": ("this", "schema 5"),
    "hidden states and four taps, unused, against none": ("tapped", "this"),
}


def made(size: str, folder: Path) -> tuple[Bundle, dict[str, Path]]:
    """A bundle of a random checkpoint, and the three graphs by name."""
    checkpoint = folder / "checkpoint"
    write_checkpoint(checkpoint, FAMILY, size)
    length = min(CONTEXT, make_config(FAMILY, size).text_config.max_position_embeddings)
    config = ExportConfig(precision="int4", context_length=length, verify=False)
    bundle = export_bundle(checkpoint, folder / "bundle", config=config)
    spec, geometry = load_spec(checkpoint), bundle.manifest.geometry
    last = geometry.num_hidden_layers - 1
    taps = (
        Tap(place="attention", layer=0),
        Tap(place="mlp", layer=last // 2),
        Tap(place="heads", layer=last // 2),
        Tap(place="mlp", layer=last),
    )
    paths = {"this": bundle.file(DECODER), "tapped": folder / "tapped.onnx"}
    weights = Checkpoint(checkpoint, spec.renames, spec.joins)
    write_decoder(weights, spec, geometry, paths["tapped"], precision="int4", hidden=True, taps=taps)
    paths["schema 5"] = paths["this"].with_name("schema5.onnx")
    write_schema_5(paths["this"], paths["schema 5"])
    return bundle, paths


def write_schema_5(source: Path, target: Path) -> None:
    """The same decoder with the head of schema 5, over the same weights."""
    model = ir.load(source)
    positions = next(value for value in model.graph.inputs if value.name == "logit_positions")
    (unsqueeze,) = (node for node, _ in positions.uses())
    ((gather, place),) = unsqueeze.outputs[0].uses()
    gather.replace_input_with(place, positions)
    model.graph.remove(unsqueeze, safe=True)
    positions.shape = ir.Shape(("C", 1))
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    logits.shape = ir.Shape((logits.shape[0], logits.shape[2])) if logits.shape else None
    target.write_bytes(ir.serde.serialize_model(model).SerializeToString())


def measured(bundle: Bundle, paths: dict[str, Path], *, threads: int, repeats: int) -> dict[str, Rounds]:
    """Rounds of a step after `VISIBLE` positions, and of a prefill of `PROMPT`, for each decoder."""
    draw = np.random.Generator(np.random.PCG64(1))
    geometry = bundle.manifest.geometry
    found = {}
    for what, past, new in (
        (f"a step, {VISIBLE} visible", VISIBLE - 1, 1),
        (f"a prompt of {PROMPT}", 0, PROMPT),
    ):
        capacity = capacity_for(past + new, geometry.context_length)
        embeds = draw.standard_normal((1, new, geometry.hidden_size), dtype=np.float32)
        feeds = portable_feeds(bundle, embeds, past, capacity)
        cases: dict[str, Case] = {}
        for name, path in paths.items():
            session = open_graph(path, threads=threads)
            zeros = {
                each.name: np.zeros((1, new, each.shape[-1]), np.float32)
                for each in session.get_inputs()
                if each.name.startswith("steer.")
            }
            cases[name] = BareDecoder(session, bundle, capacity).repeated({**feeds, **zeros})
        found[what] = interleaved(cases, repeats)
    return found


def rows(found: dict[str, Rounds]) -> Iterator[tuple[str, ...]]:
    """Ratios within a round: their median, and between which the true median lies in 96 of 100 cases."""
    for what, rounds in found.items():
        for pair, (name, base) in PAIRS.items():
            ratios = sorted(x / y for x, y in zip(rounds.seconds[name], rounds.seconds[base], strict=True))
            low, high = interval(len(ratios))
            median = ratios[len(ratios) // 2]
            met = "met" if ratios[low] <= MOST else "missed"
            yield what, pair, f"{median:.3f}x", f"{ratios[low]:.3f} to {ratios[high]:.3f}", f"{MOST}x, {met}"


def interval(count: int) -> tuple[int, int]:
    """The order statistics between which the median lies, by the binomial distribution: 4th and 12th of 15."""
    low = max(int(count / 2 - 0.98 * count**0.5 + 0.5) - 1, 0)
    return low, count - 1 - low


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint-size", choices=sorted(family(FAMILY).sizes), default="500m")
    parser.add_argument("--threads", type=int, default=0, help="0 (default) takes all cores")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        bundle, paths = made(arguments.checkpoint_size, Path(folder))
        found = measured(bundle, paths, threads=arguments.threads, repeats=arguments.repeats)
    table = TextTable(
        title="Unused parts of the contract, times within a round",
        columns=("what", "ratio", "median", "interval of the median", "at most"),
        rows=tuple(rows(found)),
    )
    command = shlex.join(["python", "tools/bench_contract.py", *sys.argv[1:]])
    machine = machine_line(this_machine(arguments.threads, "ort-cpu"))
    facts = (machine, f"random {arguments.checkpoint_size}, int4, {arguments.repeats} rounds", f"`{command}`")
    text = "# What the contract costs\n\n" + "".join(f"- {fact}\n" for fact in facts) + f"\n{markdown(table)}"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
