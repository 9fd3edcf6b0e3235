"""Opens a bundle and answers requests: the model, a policy by its mode, and one reply at a time. No arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from safecode_trt.bundle import Bundle
from safecode_trt.config import PLAIN_SAMPLING, Mode, RuntimeConfig, SafeCodeConfig, SamplingParams
from safecode_trt.errors import ConfigError
from safecode_trt.policy.base import Policy
from safecode_trt.policy.modes import make_policy, mode_settings
from safecode_trt.records import replaced
from safecode_trt.runtime.backends import Note
from safecode_trt.runtime.generation import Generation
from safecode_trt.runtime.judges.judge import Judge
from safecode_trt.runtime.model import Model
from safecode_trt.runtime.picture_file import PictureSource, as_images
from safecode_trt.runtime.prompt import Message
from safecode_trt.runtime.reply import Chunk, Reply
from safecode_trt.runtime.request import as_messages

__all__ = ["DEFAULT_MODE", "Engine", "open"]

DEFAULT_MODE: Mode = "safecode"
NO_PICTURE = "the request shows no picture, so there is none to contrast: that part of the mode is left out"
_log = logging.getLogger(__name__)


class Engine:
    """A bundle that answers requests. Not for several threads at once; several streams may interleave."""

    def __init__(self, model: Model, *, note: Note | None = None) -> None:
        self.model = model
        self._note, self._noted = note or _log.warning, False

    @classmethod
    def open(
        cls, path: str | Path, *, config: RuntimeConfig | None = None, note: Note | None = None
    ) -> Engine:
        """Opens a bundle folder.

        `note` is told which backend `auto` takes, and once if a mode that contrasts pictures gets none; otherwise
        the log is.

        Raises:
            BundleError: the folder is no sound bundle.
            BackendError: the backend is not installed or does not take the graphs.
        """
        return cls(Model.open(path, config=config, note=note), note=note)

    @property
    def bundle(self) -> Bundle:
        """The opened bundle: its folder and its manifest."""
        return self.model.bundle

    def policy(
        self, mode: Mode = DEFAULT_MODE, settings: SafeCodeConfig | Mapping[str, Any] | None = None
    ) -> Policy:
        """How a mode decodes with this bundle; a mapping changes some of the mode's settings.

        Raises:
            ConfigError: the mode or a setting is unknown or out of range, or the bundle lacks what the mode needs.
        """
        defaults = self.bundle.manifest.safecode
        if isinstance(settings, Mapping):
            settings = replaced(mode_settings(mode, defaults), settings)
        return make_policy(mode, defaults, settings=settings)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        image: PictureSource | Sequence[PictureSource] | None = None,
        mode: Mode | None = None,
        settings: SafeCodeConfig | Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        sampling: SamplingParams = PLAIN_SAMPLING,
        cancel: Callable[[], bool] | None = None,
        judge: Judge | None = None,
        explain: bool = False,
    ) -> Reply:
        """Answers a request about a picture, several, or none; see `stream`."""
        chunks = self.stream(
            prompt,
            image=image,
            mode=mode,
            settings=settings,
            policy=policy,
            sampling=sampling,
            cancel=cancel,
            judge=judge,
            explain=explain,
        )
        return [chunk for chunk in chunks if chunk.reply][-1].reply  # type: ignore[return-value]

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        image: PictureSource | Sequence[PictureSource] | None = None,
        mode: Mode | None = None,
        settings: SafeCodeConfig | Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        sampling: SamplingParams = PLAIN_SAMPLING,
        cancel: Callable[[], bool] | None = None,
        judge: Judge | None = None,
        explain: bool = False,
    ) -> Iterator[Chunk]:
        """Yields the answer as it comes; the last chunk carries the reply.

        `mode`, by default `safecode`, decides how the reply is decoded, with `settings` in the place of the mode's; a
        `policy` replaces both. What the caller did wrong is raised here, before any work: the iterator itself ends in
        the policy's fallback when a verdict or logits cannot be trusted. `judge` gives the verdict in the place of the
        model itself, if the policy acts on one; `explain` lets a refusal say what in the scene makes it unsafe.
        Without a picture the policy does without what contrasts pictures.

        Raises:
            ConfigError: the mode or a setting is unknown or out of range, or the bundle lacks what the mode needs.
            PictureError: a picture cannot be used.
            PromptError: the request cannot become a prompt, or does not fit (CapacityError).
        """
        if policy is None:
            policy = self.policy(DEFAULT_MODE if mode is None else mode, settings)
        elif mode is not None or settings is not None:
            raise ConfigError("is for a mode and its settings; give a policy or these", field="policy")
        images = as_images(image)
        return Generation(
            self.model,
            as_messages(prompt, len(images)),
            images,
            policy=policy if images else self._without_pictures(policy),
            sampling=sampling,
            cancel=cancel,
            judge=judge,
            explain=explain,
        ).chunks()

    def _without_pictures(self, policy: Policy) -> Policy:
        """The policy for a request without one; the first that lacks something then is noted."""
        unseen = policy.without_pictures()
        if unseen.plan != policy.plan and not self._noted:
            self._noted = True
            self._note(NO_PICTURE)
        return unseen

    def close(self) -> None:
        """Releases the model and its backend."""
        self.model.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(path: str | Path, *, config: RuntimeConfig | None = None, note: Note | None = None) -> Engine:
    """Opens a bundle folder; as `Engine.open`."""
    return Engine.open(path, config=config, note=note)
