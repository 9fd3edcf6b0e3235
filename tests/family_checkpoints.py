"""The tiny checkpoints and bundles of the families, each made once in a test run.

Tracing a vision encoder takes most of an export, so bundles whose vision encoders are the same share it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle, write_manifest
from safecode_trt.contract import Activations, AttentionForm, Precision, activation_dtype, decoder_graph
from safecode_trt.manifest import BUNDLE_JSON, DECODER
from safecode_trt.models import load_spec
from safecode_trt.runtime.prompt import PromptBuilder
from tests.families import FamilyCase

if TYPE_CHECKING:
    from safecode_trt.export import ExportConfig
    from safecode_trt.export.parity import Answer
    from safecode_trt.export.probes import TextProbe

PREPROCESSOR = "preprocessor."


class FamilyCheckpoints:
    """The fixture `made`: makes what a test asks for, and keeps it for the next one."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._folders: dict[str, Path] = {}
        self._answers: dict[str, tuple[Sequence[TextProbe], Sequence[Answer]]] = {}
        self._bundles: dict[tuple[str, Precision, AttentionForm, Activations | None], Bundle] = {}

    def checkpoint(self, case: FamilyCase) -> Path:
        """The family's tiny checkpoint folder."""
        if case.model_type not in self._folders:
            folder = self._factory.mktemp(case.model_type) / "checkpoint"
            sizes = {k: v for k, v in case.changes.items() if not k.startswith(PREPROCESSOR)}
            write_checkpoint(folder, case.model_type, dtype="F32", changes=sizes)
            path = folder / "preprocessor_config.json"
            settings = json.loads(path.read_text())
            for key, value in case.changes.items():
                if key.startswith(PREPROCESSOR):
                    settings[key.removeprefix(PREPROCESSOR)] = value
            path.write_text(json.dumps(settings))
            self._folders[case.model_type] = folder
        return self._folders[case.model_type]

    def bundle(
        self,
        case: FamilyCase,
        precision: Precision = "fp32",
        attention: AttentionForm = "portable",
        activations: Activations | None = None,
    ) -> Bundle:
        """The family's bundle, not compared with transformers."""
        from safecode_trt.export import ExportConfig, export_bundle

        key = (case.model_type, precision, attention, activations)
        if key not in self._bundles:
            config = ExportConfig(
                precision=precision, attention=attention, activations=activations, verify=False
            )
            base: Precision = "fp16" if config.activation_precision == "fp16" else "fp32"
            folder = self.checkpoint(case)
            output = folder.with_name("-".join(filter(None, key[1:])))
            if (precision, attention) == (base, "portable"):
                self._bundles[key] = export_bundle(folder, output, config=config)
            else:
                self._bundles[key] = _with_decoder(self.bundle(case, base), folder, output, config)
        return self._bundles[key]

    def answers(self, case: FamilyCase) -> tuple[Sequence[TextProbe], Sequence[Answer]]:
        """Probes on the case's layouts and the reference layout, and what transformers answers."""
        from safecode_trt.export.package import special_tokens
        from safecode_trt.export.parity import answer_probes
        from safecode_trt.export.probes import make_probes

        if case.model_type not in self._answers:
            folder = self.checkpoint(case)
            spec = load_spec(folder)
            layouts = [spec.reference_layout, *(spec.layout(*size) for size in case.sizes)]
            probes = make_probes(spec, PromptBuilder(folder, spec), layouts)
            ends = special_tokens(folder, spec).eos_token_ids
            self._answers[case.model_type] = probes, answer_probes(folder, spec, probes, ends)
        return self._answers[case.model_type]


def _with_decoder(base: Bundle, checkpoint: Path, output: Path, config: ExportConfig) -> Bundle:
    """The bundle with another decoder; everything else is what an export would write."""
    from safecode_trt.export.checkpoint import Checkpoint
    from safecode_trt.export.decoder import write_decoder
    from safecode_trt.export.package import bundle_files
    from safecode_trt.export.shape_nodes import shape_nodes

    shutil.copytree(base.path, output)
    spec, geometry = load_spec(checkpoint), base.manifest.geometry
    precision, activations = config.precision, config.activation_precision
    quantization = write_decoder(
        Checkpoint(checkpoint, spec.renames, spec.joins),
        spec,
        geometry,
        output / DECODER,
        precision=precision,
        attention=config.attention,
        activations=activations,
    )
    own = spec.decoder_inputs(activation_dtype(precision, activations))
    decoder = decoder_graph(geometry, precision, own, activations=activations)
    manifest = replace(
        base.manifest,
        precision=precision,
        activations=activations,
        attention=config.attention,
        graphs={**base.manifest.graphs, DECODER: decoder},
        quantization=quantization,
        shape_nodes={**base.manifest.shape_nodes, DECODER: shape_nodes(output / DECODER)},
    )
    (output / BUNDLE_JSON).unlink()
    write_manifest(output, replace(manifest, files=bundle_files(output)))
    return Bundle.open(output)
