"""An opened bundle that can be run: requests become prompts, pictures features, and both a filled key/value cache.

Owns the session and what replies leave for later ones. Knows no policy, no judge and no text of an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safecode_trt import remedies
from safecode_trt.bundle import Bundle
from safecode_trt.config import RuntimeConfig
from safecode_trt.contract import activation_dtype
from safecode_trt.errors import BundleError, CheckpointError
from safecode_trt.manifest import DECODER, EMBEDDINGS, REFERENCE, Manifest
from safecode_trt.models import Features, ModelSpec, load_spec
from safecode_trt.policy.base import Plan
from safecode_trt.runtime.backends import Note, open_session
from safecode_trt.runtime.contexts import FeatureKey, row_prompt
from safecode_trt.runtime.feeds import FeedBuilder
from safecode_trt.runtime.image_features import picture_features
from safecode_trt.runtime.kv_cache import KVCache
from safecode_trt.runtime.prefill import run_prefill
from safecode_trt.runtime.prompt import Message, PromptBuilder
from safecode_trt.runtime.request import PrefixKey, Request, prepare
from safecode_trt.runtime.rows import RowPrompt, Tail, tail_of
from safecode_trt.runtime.session import CacheMemory, Prefix, Session
from safecode_trt.tensors import map_tensors

__all__ = ["Model", "Prefilled"]

KEPT_PREFIXES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """First logits (C, V) of a request, its filled cache, and what its tokens after the prompts share."""

    logits: NDArray[np.float32]
    cache: KVCache
    tail: Tail


class Model:
    """A bundle opened on a backend. Not for several threads at once; several replies may interleave."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self.bundle, self.session = bundle, session
        try:
            self.spec = load_spec(bundle.path, max_tiles=bundle.manifest.max_tiles)
        except CheckpointError as error:
            raise BundleError(
                f"{bundle.path} was made by another version: {error}", fix=remedies.export(bundle.path)
            ) from error
        _check_decoder(bundle, self.spec)
        self.prompts = PromptBuilder(bundle.path, self.spec)
        tables = map_tensors(bundle.file(EMBEDDINGS))
        if "embed_tokens" not in tables:
            raise BundleError(
                f"{bundle.file(EMBEDDINGS)} has no tensor embed_tokens", fix=remedies.export(bundle.path)
            )
        self.builder = FeedBuilder(self.spec.text, tables["embed_tokens"], self.capacity)
        self._prefixes: OrderedDict[PrefixKey, Prefix] = OrderedDict()
        self._idle: list[CacheMemory] = []
        self._lent: WeakSet[KVCache] = WeakSet()

    @classmethod
    def open(
        cls, path: str | Path, *, config: RuntimeConfig | None = None, note: Note | None = None
    ) -> Model:
        """Opens a bundle folder; `note` is told which backend `auto` takes, otherwise the log is.

        Raises:
            BundleError: the folder is no sound bundle.
            BackendError: the backend is not installed or does not take the graphs.
        """
        config = config or RuntimeConfig()
        bundle = Bundle.open(path, check_hashes=config.check_hashes)
        session = open_session(bundle, config, note=note)
        try:
            return cls(bundle, session)
        except BaseException:
            session.close()
            raise

    @property
    def backend(self) -> str:
        """The name of the backend that runs it."""
        return self.session.name

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def capacity(self) -> int:
        """Positions of prompt and answer together."""
        return self.bundle.manifest.geometry.context_length

    def prepare(self, messages: Sequence[Message], images: Sequence[Image.Image], plan: Plan) -> Request:
        """Plans a request whose pictures are upright and in RGB; as `request.prepare`."""
        return prepare(
            messages,
            images,
            plan=plan,
            prompts=self.prompts,
            spec=self.spec,
            capacity=self.capacity,
            kept=self._kept,
        )

    def features(
        self, request: Request, *, seed: int, known: dict[FeatureKey, Features] | None = None
    ) -> dict[FeatureKey, Features]:
        """The image features of all rows of a request.

        `known` has those of the same pictures that are there already, and gets the others; a vision encoder that
        reads the prompt encodes each picture anew.
        """
        if known is None or self.spec.words_tokenizer is not None:
            known = {}
        known |= picture_features(
            self.session, self.spec, request, seed=seed, reference=self._reference, known=known
        )
        return known

    def prefill(self, request: Request, features: dict[FeatureKey, Features]) -> Prefilled:
        """A request's rows in a cache; give the cache to `release` afterwards."""
        rows = [self.row(request, row, features) for row in range(len(request.keys))]
        cache = KVCache(self._memory(len(rows), request.prefill.capacity + 1), rows=len(rows))
        self._lent.add(cache)
        for row, prefix in request.prefixes.items():
            cache.load(row, prefix)
        logits = run_prefill(request.prefill, rows, self.session, cache, self.builder)
        for row, (length, key) in request.prefix_keys.items():
            if key not in self._prefixes:
                self._prefixes[key] = cache.save(row, length)
                if len(self._prefixes) > KEPT_PREFIXES:
                    self._prefixes.popitem(last=False)
        return Prefilled(logits=logits, cache=cache, tail=tail_of(rows))

    def row(self, request: Request, row: int, features: dict[FeatureKey, Features]) -> RowPrompt:
        """One row of a request as numbers."""
        token_ids = request.tokens[request.plan.contexts[row].prompt]
        seen = features.get(request.feature_keys[row], {})
        return row_prompt(token_ids, request.keys[row], seen, request.layouts, self.spec, self.builder)

    def release(self, cache: KVCache) -> None:
        """Takes a reply's memory back for the next one, unless `forget` was called since it was lent."""
        if cache in self._lent:
            self._lent.discard(cache)
            self._idle = [cache.memory]

    def forget(self) -> None:
        """Drops what replies have left for later ones: if one failed, it may hold NaN, which no mask hides."""
        self._idle.clear()
        self._lent.clear()
        self._prefixes.clear()

    def _kept(self, key: PrefixKey) -> Prefix | None:
        """A kept prefix, which is now the one used last."""
        if (prefix := self._prefixes.get(key)) is not None:
            self._prefixes.move_to_end(key)
        return prefix

    def _memory(self, rows: int, positions: int) -> CacheMemory:
        """Idle memory if it has the rows: fresh memory costs page faults, stale contents are masked."""
        memory = self._idle.pop() if self._idle else None
        if memory is None or memory.rows < rows:
            memory = None  # there may be no room for both
            memory = self.session.allocate(rows)
        memory.clear()  # every step reads all of it, and the reply before may have been a long one
        memory.reserve(positions)
        return memory

    def _reference(self) -> Features:
        return {name: x.float32() for name, x in map_tensors(self.bundle.file(REFERENCE)).items()}

    def close(self) -> None:
        """Releases the backend."""
        self.forget()
        self.session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_decoder(bundle: Bundle, spec: ModelSpec) -> None:
    """Holds the decoder's own inputs of a family against what the spec will feed."""
    manifest = bundle.manifest
    own = spec.decoder_inputs(activation_dtype(manifest.precision, manifest.activations))
    if manifest.graphs[DECODER] != manifest.decoder_contract(own):
        raise BundleError(
            f"{bundle.path}: the decoder's inputs are not those of the family {spec.model_type}",
            fix=remedies.export(bundle.path),
        )
