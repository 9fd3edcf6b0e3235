"""The tiny checkpoints and bundles of the families, each made once in a test run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from make_random_checkpoint import write_checkpoint
from safecode_trt.bundle import Bundle
from safecode_trt.contract import Activations, AttentionForm, Precision
from tests.families import FamilyCase

PREPROCESSOR = "preprocessor."


class FamilyCheckpoints:
    """The fixture `made`: makes what a test asks for, and keeps it for the next one."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._folders: dict[str, Path] = {}
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
        """The family's bundle; in fp32 compared with transformers while it is made."""
        from safecode_trt.export import ExportConfig, export_bundle

        key = (case.model_type, precision, attention, activations)
        if key not in self._bundles:
            folder = self.checkpoint(case)
            config = ExportConfig(
                precision=precision, attention=attention, activations=activations, verify=precision == "fp32"
            )
            output = folder.with_name("-".join(filter(None, key[1:])))
            self._bundles[key] = export_bundle(folder, output, config=config)
        return self._bundles[key]
