"""safecode-trt export: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from safecode_trt.cli import console
from safecode_trt.cli.options import MODEL, PATH
from safecode_trt.contract import (
    ACTIVATIONS,
    ATTENTION_FORMS,
    HEAD_PRECISIONS,
    PRECISIONS,
    VISION_PRECISIONS,
    HeadPrecision,
)

__all__ = ["command"]


@click.command("export", short_help="Make a bundle from a checkpoint.")
@click.option(
    "--model",
    type=MODEL,
    required=True,
    metavar="FOLDER|OWNER/NAME[@REVISION]",
    help="Folder of a Hugging Face checkpoint, or a model's name on the hub.",
)
@click.option("--offline", is_flag=True, help="Take a model on the hub from the cache, without the network.")
@click.option("--output", type=PATH, required=True, help="Folder of the new bundle.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="int4",
    show_default=True,
    help="bf16 runs on GPUs only and needs --no-verify.",
)
@click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    help="What int8 and int4 weights are multiplied in: by default fp32; engines need fp16.",
)
@click.option(
    "--block-size",
    metavar="[32|64|128|channel]",
    help="Inputs of an output that share a scale: by default 32 in int4, and in int8 all, the channel.",
)
@click.option(
    "--asymmetric", is_flag=True, help="Quantise with zero points; TensorRT takes symmetric weights only."
)
@click.option(
    "--scale-search",
    is_flag=True,
    help="Search the int4 scales with the smallest squared error of the weights.",
)
@click.option(
    "--lm-head",
    type=click.Choice(HEAD_PRECISIONS),
    default="int8",
    show_default=True,
    help="Precision of the logits' weight where the others are int4.",
)
@click.option(
    "--vision-precision",
    type=click.Choice(VISION_PRECISIONS),
    help="Weights of the vision encoder: by default fp16 with float16 activations, else fp32.",
)
@click.option(
    "--max-tiles",
    type=int,
    metavar="N",
    help="The most tiles of a picture, whose tokens fill the context; 0: only the whole. "
    "Qwen cuts no pictures: 256 image tokens for each, and as many for the whole.",
)
@click.option(
    "--context-length",
    type=int,
    help="The most tokens of prompt and answer together: by default the model's own, at most 4096.",
)
@click.option(
    "--attention",
    type=click.Choice(ATTENTION_FORMS),
    default="portable",
    show_default=True,
    help="decomposed is for the ONNX Runtime of Python 3.10.",
)
@click.option("--hidden", is_flag=True, help="Add an output with the states after the final norm.")
@click.option(
    "--taps",
    multiple=True,
    metavar="PLACE:LAYER",
    help="A place whose values can be read and steered: attention, mlp or heads, and the layer; repeatable.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare with transformers.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --output.")
def command(
    model: str,
    output: Path,
    overwrite: bool,
    block_size: str | None,
    asymmetric: bool,
    scale_search: bool,
    lm_head: HeadPrecision,
    taps: tuple[str, ...],
    **options: Any,
) -> None:
    """Make a bundle from a Hugging Face checkpoint: a folder, or a model on the hub.

    The bundle is written whole or not at all.

    \b
    Example:
      safecode-trt export --model models/demo --output build/demo-bundle
      safecode-trt export --model HuggingFaceTB/SmolVLM-256M-Instruct \\
          --output build/smolvlm
    """
    from safecode_trt.export import ExportConfig, WeightConfig, export_bundle
    from safecode_trt.export.export_config import parse_block_size, parse_tap

    weights = WeightConfig(
        block_size=parse_block_size(block_size),
        asymmetric=asymmetric,
        scale_search=scale_search,
        lm_head=lm_head,
    )
    config = ExportConfig(overwrite=overwrite, weights=weights, taps=tuple(map(parse_tap, taps)), **options)
    with console.progress() as progress:
        bundle = export_bundle(model, output, config=config, progress=progress)
    files = bundle.manifest.files.values()
    console.note(f"{len(files)} files, {console.size(sum(file.bytes for file in files))}")
    click.echo(bundle.path)
