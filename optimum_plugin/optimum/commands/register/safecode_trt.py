"""`optimum-cli export safecode-trt`: our export as a sub-command of Optimum's command line.

Optimum finds this file by its folder; such folders must not have an __init__.py. Every `optimum-cli` call imports
it, so whatever is heavy is imported when the command runs.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from safecode_trt.contract import (
    ACTIVATIONS,
    ATTENTION_FORMS,
    HEAD_PRECISIONS,
    PRECISIONS,
    VISION_PRECISIONS,
)

__all__ = ["REGISTER_COMMANDS", "SafeCodeExportCommand"]


class SafeCodeExportCommand(BaseOptimumCLICommand):
    """Makes a SafeCoDe-TRT bundle of a checkpoint."""

    COMMAND = CommandInfo(name="safecode-trt", help="Make a SafeCoDe-TRT bundle of a checkpoint.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """The options of `safecode-trt export`, with the same defaults."""
        parser.add_argument(
            "-m",
            "--model",
            required=True,
            help="Folder of a checkpoint, or owner/name[@revision] on the hub.",
        )
        parser.add_argument("-o", "--output", type=Path, required=True, help="Folder of the new bundle.")
        parser.add_argument("--precision", choices=PRECISIONS, default="int4")
        parser.add_argument(
            "--activations", choices=ACTIVATIONS, help="With int8 and int4; engines need fp16."
        )
        parser.add_argument("--block-size", help="Inputs that share a scale: 32, 64, 128 or channel.")
        parser.add_argument("--asymmetric", action="store_true", help="Quantise with zero points.")
        parser.add_argument("--scale-search", action="store_true", help="Search scales with the least error.")
        parser.add_argument("--lm-head", choices=HEAD_PRECISIONS, default="int8")
        parser.add_argument("--vision-precision", choices=VISION_PRECISIONS)
        parser.add_argument(
            "--max-tiles",
            type=int,
            help="The most tiles of a picture, for Qwen of 256 image tokens each; 0: only the whole.",
        )
        parser.add_argument(
            "--context-length", type=int, help="The most tokens of prompt and answer together."
        )
        parser.add_argument("--attention", choices=ATTENTION_FORMS, default="portable")
        parser.add_argument("--hidden", action="store_true", help="Add an output with the last states.")
        parser.add_argument(
            "--taps", action="append", default=[], metavar="PLACE:LAYER", help="Places to read and steer."
        )
        parser.add_argument(
            "--no-verify", dest="verify", action="store_false", help="Do not compare with transformers."
        )
        parser.add_argument("--offline", action="store_true", help="Take a model on the hub from the cache.")
        parser.add_argument("--overwrite", action="store_true", help="Replace a bundle at --output.")

    def run(self) -> None:
        """Exports; a failure is one line on stderr and exit code 1."""
        from safecode_trt.errors import SafeCodeError
        from safecode_trt.export import ExportConfig, WeightConfig, export_bundle
        from safecode_trt.export.export_config import parse_block_size, parse_tap

        arguments: Any = self.args
        try:
            config = ExportConfig(
                precision=arguments.precision,
                activations=arguments.activations,
                context_length=arguments.context_length,
                attention=arguments.attention,
                verify=arguments.verify,
                overwrite=arguments.overwrite,
                weights=WeightConfig(
                    block_size=parse_block_size(arguments.block_size),
                    asymmetric=arguments.asymmetric,
                    scale_search=arguments.scale_search,
                    lm_head=arguments.lm_head,
                ),
                vision_precision=arguments.vision_precision,
                max_tiles=arguments.max_tiles,
                offline=arguments.offline,
                hidden=arguments.hidden,
                taps=tuple(map(parse_tap, arguments.taps)),
            )
            bundle = export_bundle(arguments.model, arguments.output, config=config)
        except SafeCodeError as error:
            sys.exit(f"error: {error}")
        sys.stdout.write(f"{bundle.path}\n")


REGISTER_COMMANDS = [(SafeCodeExportCommand, ExportCommand)]
