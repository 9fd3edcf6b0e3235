"""The whole checkpoint as transformers runs it in float32: what the exported graphs are held against."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from safecode_trt.export.probes import Probe, TextProbe
from safecode_trt.export.quiet import quiet
from safecode_trt.models import Features, ModelSpec

__all__ = ["TransformersModel"]


class TransformersModel:
    """A checkpoint folder, loaded whole. The family's file says how transformers wants pictures."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._spec = spec
        loader = AutoModelForCausalLM if spec.text_only else AutoModelForImageTextToText
        with quiet():
            model = loader.from_pretrained(folder, dtype=torch.float32)
        # Whatever the checkpoint's own settings do to logits, such as a repetition penalty, our graphs do not.
        model.generation_config = GenerationConfig()
        self._model = model.eval()

    @torch.no_grad()
    def features(self, probe: TextProbe) -> Features:
        """What the vision encoder says of the probe's picture, if it has one."""
        if not isinstance(probe, Probe):
            return {}
        found: Tensor | Mapping[str, Tensor] = self._family.image_features(
            self._model, self._inputs(probe, ())
        )
        named = {"image_features": found} if isinstance(found, Tensor) else found
        return {name: x.float().numpy() for name, x in named.items()}

    @torch.no_grad()
    def greedy(self, probe: TextProbe, count: int, ends: Sequence[int]) -> tuple[int, ...]:
        """The greedy reply up to its end token, at most `count` tokens.

        An image token, which random weights may answer, is an end too: no picture belongs to it.
        """
        inputs = self._inputs(probe, ())
        image = [] if self._spec.text_only else [self._spec.image_token_id]
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=[*ends, *image],
            pad_token_id=ends[0],
        )
        with quiet():
            found = self._model.generate(**inputs, generation_config=settings)
        tokens: list[int] = found[0].tolist()
        # Some models return the prompt in front of the reply, some the reply alone.
        prompt = probe.token_ids.tolist()
        return tuple(tokens[len(prompt) :] if tokens[: len(prompt)] == prompt else tokens)

    @torch.no_grad()
    def logits(self, probe: TextProbe, reply: Sequence[int]) -> NDArray[np.float32]:
        """Logits (n + len(reply), V) of the prompt and the reply after it."""
        logits: NDArray[np.float32] = self._model(**self._inputs(probe, reply)).logits[0].float().numpy()
        return logits

    @property
    def _family(self) -> ModuleType:
        return importlib.import_module(f"safecode_trt.export.families.{self._spec.model_type}")

    def _inputs(self, probe: TextProbe, reply: Sequence[int]) -> dict[str, Tensor]:
        token_ids = torch.from_numpy(np.append(probe.token_ids, reply).astype(np.int64))[None]
        inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
        if not isinstance(probe, Probe):
            return inputs
        shown: Mapping[str, Any] = self._family.model_inputs(self._spec, probe, token_ids)
        return {**inputs, **shown}
